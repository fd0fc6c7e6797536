"""K stratified folds that keep groups whole and every class in every training side.

Not scikit-learn's StratifiedGroupKFold: it holds a groups × classes table (28 GB for the 437,513
images and 8,142 classes of iNaturalist 2018) and knows no rare classes.
"""

import numpy as np
import pandas as pd

from src.artifacts.dataset import ALWAYS_TRAIN
from src.errors import UserError


def make_folds(labels: np.ndarray, groups: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Fold of each image, [N]: 0 … k − 1, or −1 for images that every fold trains on.

    labels: [N] int · groups: [N] any values; the order of the rows decides nothing but which
    group is drawn first, so pass rows sorted by id.
    Large groups are placed first, then in shuffled order, each in the fold that has the smallest
    share of the group's classes, the smaller fold on a tie. Rare classes: the only group of a
    class is always trained on; a class that landed in one fold alone gets a group moved.
    Errors: UserError when there are fewer groups to hold out than folds.
    """
    table = _Groups(labels, groups)
    fold = _place(table, _place_order(table, seed), k)
    _repair(table, fold)
    of_image = fold[table.of_image]
    _check(labels, table.of_image, of_image, k)
    return of_image


class _Groups:
    """Images counted by group. Flat arrays: lists of N small ones took gigabytes."""

    def __init__(self, labels: np.ndarray, groups: np.ndarray):
        self.of_image, found = pd.factorize(groups)  # numbered by first row: by the order alone
        self.size = len(found)
        self.num_classes = int(labels.max()) + 1
        self.images = np.bincount(self.of_image, minlength=self.size)
        pair, count = np.unique(
            self.of_image.astype(np.int64) * self.num_classes + labels, return_counts=True
        )
        owner, label = pair // self.num_classes, pair % self.num_classes
        self._labels, self._counts = label, count
        self._bounds = np.searchsorted(owner, np.arange(self.size + 1)).tolist()
        self.class_groups = np.bincount(label)
        self.class_images = np.bincount(labels)
        by_label = np.argsort(label, kind="stable")
        ends = np.cumsum(self.class_groups)[:-1]
        self.members = np.split(owner[by_label], ends)  # groups of each class, ascending

    def within(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels of a group, and how many of its images have each."""
        part = slice(self._bounds[group], self._bounds[group + 1])
        return self._labels[part], self._counts[part]


def _place_order(table: _Groups, seed: int) -> np.ndarray:
    """Groups that can be held out, large ones first, shuffled within a size."""
    single = [g for g in table.members if len(g) == 1]
    always = np.unique(np.concatenate(single)) if single else np.array([], dtype=np.int64)
    free = np.setdiff1d(np.arange(table.size), always)
    shuffled = np.random.default_rng(seed).permutation(free)
    return shuffled[np.argsort(-table.images[shuffled], kind="stable")]


def _place(table: _Groups, order: np.ndarray, k: int) -> np.ndarray:
    if len(order) < k:
        raise UserError(
            f"folds.k = {k} needs at least {k} groups of images that can be held out; found "
            f"{len(order)} (images of one photo are one group, and a class's only group is always "
            "trained on). Choose a smaller folds.k or add images."
        )
    fold = np.full(table.size, ALWAYS_TRAIN)
    share = np.zeros((k, table.num_classes))
    total = np.zeros(k, dtype=np.int64)
    for group in order:
        labels, counts = table.within(group)
        weight = counts / table.class_images[labels]
        load = np.round(share[:, labels] @ weight, 12)
        best = np.lexsort((total, load))[0]
        fold[group] = best
        share[best, labels] += weight
        total[best] += table.images[group]
    return fold


def _repair(table: _Groups, fold: np.ndarray) -> None:
    """Move one group of each class that is held out in one fold alone to the fold with the fewest
    images; if that harms another class, train on the group always. In place. Such a class has two
    groups or more, so no fold gets empty."""
    held_out = fold >= 0
    images = np.bincount(fold[held_out], table.images[held_out])
    for members in table.members:
        if len(set(fold[members])) != 1 or fold[members[0]] == ALWAYS_TRAIN:
            continue
        others = [f for f in np.argsort(images, kind="stable") if f != fold[members[0]]]
        group = members[np.argmin(table.images[members])]
        before = fold[group]
        fold[group] = others[0]
        if any(len(set(fold[table.members[c]])) == 1 for c in table.within(group)[0]):
            fold[group] = ALWAYS_TRAIN
        else:
            images[fold[group]] += table.images[group]
        images[before] -= table.images[group]


def _check(labels: np.ndarray, groups: np.ndarray, fold: np.ndarray, k: int) -> None:
    """What must hold whatever happened above: no leak, no class without training images."""
    pairs = np.unique(groups.astype(np.int64) * (k + 1) + fold + 1)
    assert len(np.unique(pairs // (k + 1))) == len(pairs), "a group spans two folds"
    assert fold.min() >= ALWAYS_TRAIN and fold.max() < k, "a fold outside -1 … k-1"
    assert set(range(k)) <= set(fold.tolist()), f"folds {set(range(k)) - set(fold.tolist())} empty"
    present = np.unique(labels)
    for held_out in range(k):
        lost = np.setdiff1d(present, labels[fold != held_out])
        assert not len(lost), f"labels {lost.tolist()} have no training image in fold {held_out}"
