"""Folds over random tails: no leak, no class without training images, even sizes."""

import numpy as np
import pytest

from src.errors import UserError
from src.prepare.folds import _Groups, _repair, make_folds


def random_tail(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels and groups of a random long tail; some groups hold several images and classes.

    Every third one has classes of two groups each over few groups: with two folds that is the
    colouring of a graph, which often has no solution without always-train groups.
    """
    rng = np.random.default_rng(seed)
    num_classes, k = int(rng.integers(3, 40)), int(rng.integers(2, 7))
    if seed % 3 == 0:
        pairs = [rng.choice(12, 2, replace=False) for _ in range(num_classes)]
        return np.repeat(np.arange(num_classes), 2), np.concatenate(pairs), 2
    counts = np.maximum(1, (60 * rng.random(num_classes) ** 3).astype(int))
    labels = np.repeat(np.arange(num_classes), counts)
    labels = np.concatenate([labels, rng.integers(0, num_classes, 40)])
    groups = np.arange(len(labels))
    for _ in range(int(rng.integers(0, len(labels) // 3))):
        a, b = rng.integers(0, len(labels), 2)
        groups[groups == groups[a]] = groups[b]
    return labels, groups, k


@pytest.mark.parametrize("seed", range(60))
def test_what_must_hold_for_every_tail(seed):
    labels, groups, k = random_tail(seed)
    fold = make_folds(labels, groups, k, seed)
    for group in np.unique(groups):
        assert len(set(fold[groups == group])) == 1
    for held_out in range(k):
        assert (fold == held_out).any()
        assert set(labels[fold != held_out]) == set(labels)
    sole = [c for c in set(labels) if len(set(groups[labels == c])) == 1]
    assert (fold[np.isin(labels, sole)] == -1).all()


def test_classes_are_spread_evenly():
    counts = np.array([100, 47, 13, 5, 3, 2])
    labels = np.repeat(np.arange(6), counts)
    fold = make_folds(labels, np.arange(len(labels)), 5, seed=0)
    table = np.array([np.bincount(fold[labels == c], minlength=5) for c in range(6)])
    assert (table.max(1) - table.min(1) <= 1).all()
    assert np.ptp(table.sum(0)) <= 2


def test_large_groups_are_balanced_by_images():
    sizes = np.array([30, 20, 10, 10, 10, 5, 5])  # 90 images, three folds of 30
    groups = np.repeat(np.arange(7), sizes)
    fold = make_folds(np.zeros(90, dtype=int), groups, 3, seed=0)
    assert np.bincount(fold).tolist() == [30, 30, 30]


def test_a_class_whose_groups_attract_each_other_is_still_trained_on():
    # Class 2 has one image in each of two groups, both of which the larger classes place together.
    labels = np.array([0] * 8 + [2] + [1] * 8 + [2] + [0] * 9 + [1] * 9)
    groups = np.array([0] * 9 + [1] * 9 + [2] * 9 + [3] * 9)
    for seed in range(20):
        fold = make_folds(labels, groups, 2, seed)
        for held_out in (0, 1):
            assert set(labels[fold != held_out]) == {0, 1, 2}


@pytest.mark.parametrize("largest, last", [(4, 0), (9, 2)])
def test_a_class_in_one_fold_gives_its_smallest_group_to_the_smallest_fold(largest, last):
    """Classes 0, 1 and 2 are in one fold each; as they are moved, the folds' sizes change."""
    sizes, labels = [largest, 2, 5, 4, 2, 3, 6, 1], np.array([0, 0, 1, 1, 2, 2, 3, 3])
    fold = np.array([0, 0, 0, 0, 1, 1, 2, 1])  # of 15 or 20, 6 and 6 images
    table = _Groups(np.repeat(labels, sizes), np.repeat(np.arange(8), sizes))
    _repair(table, fold)  # 2 images to fold 1, then 4 to fold 2, then 2 where 9 or 14, or 10 are
    assert fold.tolist() == [0, 1, 0, 2, last, 1, 2, 1]


def test_a_group_that_would_harm_another_class_is_always_trained_on():
    labels, groups = np.array([0, 2, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    fold = np.array([0, 0, 1])  # class 0 is in fold 0 alone; group 0 beside 2 would harm class 2
    _repair(_Groups(labels, groups), fold)
    assert fold.tolist() == [-1, 0, 1]


def test_seeds_differ_and_repeat():
    labels = np.repeat(np.arange(4), 25)
    once = make_folds(labels, np.arange(100), 5, seed=1)
    assert np.array_equal(once, make_folds(labels, np.arange(100), 5, seed=1))
    assert not np.array_equal(once, make_folds(labels, np.arange(100), 5, seed=2))


def test_too_few_groups_for_k():
    with pytest.raises(UserError, match="at least 5 groups.*found 4"):
        make_folds(np.array([0, 0, 1, 1, 2]), np.arange(5), 5, seed=0)
    just_enough = make_folds(np.array([0, 0, 1, 1, 2]), np.arange(5), 4, seed=0)
    assert sorted(just_enough) == [-1, 0, 1, 2, 3] and just_enough[4] == -1
