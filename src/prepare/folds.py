"""K stratified folds that keep groups whole and every class in every training side.

Not scikit-learn's StratifiedGroupKFold: it holds a groups × classes table (28 GB for the 437,513
images and 8,142 classes of iNaturalist 2018) and knows no rare classes.
"""

import numpy as np

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
    _repair(table, fold, k)
    of_image = fold[table.of_image]
    _check(labels, table.of_image, of_image, k)
    return of_image


class _Groups:
    """Images counted by group: for group g, its labels[g] with counts[g] images each."""

    def __init__(self, labels: np.ndarray, groups: np.ndarray):
        first, self.of_image = _by_first_row(groups)
        self.size = len(first)
        self.num_classes = int(labels.max()) + 1
        self.images = np.bincount(self.of_image, minlength=self.size)
        pair, count = np.unique(
            self.of_image.astype(np.int64) * self.num_classes + labels, return_counts=True
        )
        owner, label = pair // self.num_classes, pair % self.num_classes
        bounds = np.searchsorted(owner, np.arange(1, self.size))
        self.labels = np.split(label, bounds)
        self.counts = np.split(count, bounds)
        self.class_groups = np.bincount(label, minlength=self.num_classes)
        self.class_images = np.bincount(labels, minlength=self.num_classes)
        by_label = np.argsort(label, kind="stable")
        ends = np.cumsum(self.class_groups)[:-1]
        self.members = np.split(owner[by_label], ends)  # groups of each class, ascending


def _by_first_row(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups numbered by their first row, so that numbers depend on nothing but the row order."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return np.sort(first), rank[inverse]


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
        labels, counts = table.labels[group], table.counts[group]
        weight = counts / table.class_images[labels]
        load = np.round(share[:, labels] @ weight, 12)
        best = np.lexsort((total, load))[0]
        fold[group] = best
        share[best, labels] += weight
        total[best] += table.images[group]
    return fold


def _repair(table: _Groups, fold: np.ndarray, k: int) -> None:
    """Move one group of each class that is held out in one fold alone; if that harms another
    class, train on the group always. In place."""
    for members in table.members:
        if len(set(fold[members])) != 1 or fold[members[0]] == ALWAYS_TRAIN:
            continue
        images = np.bincount(fold[fold >= 0], table.images[fold >= 0], minlength=k)
        others = [f for f in np.argsort(images, kind="stable") if f != fold[members[0]]]
        group = members[np.argmin(table.images[members])]
        before = fold[group]
        fold[group] = others[0]
        if any(len(set(fold[table.members[c]])) == 1 for c in table.labels[group]):
            fold[group] = ALWAYS_TRAIN
        if not np.any(fold == before):
            raise UserError(f"fold {before} is empty; choose a smaller folds.k than {k}")


def _check(labels: np.ndarray, groups: np.ndarray, fold: np.ndarray, k: int) -> None:
    """What must hold whatever happened above: no leak, no class without training images."""
    pairs = np.unique(np.stack([groups, fold]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1], "a group spans two folds"
    assert fold.min() >= ALWAYS_TRAIN and fold.max() < k, "a fold outside -1 … k-1"
    assert set(range(k)) <= set(fold.tolist()), f"folds {set(range(k)) - set(fold.tolist())} empty"
    present = np.unique(labels)
    for held_out in range(k):
        lost = np.setdiff1d(present, labels[fold != held_out])
        assert not len(lost), f"labels {lost.tolist()} have no training image in fold {held_out}"
