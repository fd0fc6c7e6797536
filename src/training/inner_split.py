"""A second held-out part, inside the training images of one fold: what a search may look at."""

from dataclasses import replace

import numpy as np

from src.artifacts.dataset import ALWAYS_TRAIN, Dataset
from src.config.search import Search
from src.errors import UserError


def inner_split(data: Dataset, spec: Search) -> Dataset:
    """The training images of the search's fold, about `holdout` of each class held out in turn.

    The outer held-out images are not in it at all.
    """
    images = data.training(spec.fold)
    out = hold_out(
        images["label"].to_numpy(), images["group_id"].to_numpy(), spec.holdout, spec.seed
    )
    if not out.any():
        raise UserError(
            f"search.holdout={spec.holdout}: no class has enough images (or groups of them) to "
            f"hold one out; the largest has {data.counts(images).max()}"
        )
    fold = np.where(out, spec.fold, ALWAYS_TRAIN)
    return replace(data, images=images.assign(fold=fold).reset_index(drop=True))


def hold_out(labels: np.ndarray, groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which images are held out, [N] bool: of each class the share, rounded, in whole groups.

    Groups come in shuffled order, and one that would take more than its share of any class stays;
    so does the last group of a class.
    """
    _, first, of_image = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # numbered by their first image, whatever their names
    members = np.split(
        np.argsort(rank[of_image], kind="stable"), np.cumsum(np.bincount(rank[of_image]))[:-1]
    )
    counts = np.bincount(labels)
    left = np.minimum(np.floor(share * counts + 0.5).astype(int), counts - 1)
    out = np.zeros(len(labels), bool)
    for group in np.random.default_rng(seed).permutation(len(members)):
        classes, number = np.unique(labels[members[group]], return_counts=True)
        if (number <= left[classes]).all():
            left[classes] -= number
            out[members[group]] = True
    return out
