"""Samplers draw what their formula says, from any tail."""

import numpy as np
import pytest

from src.data.samplers import SAMPLERS, by_class, epoch_order


def random_tail(seed: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng(seed)
    counts = np.sort(rng.integers(1, 60, rng.integers(2, 30)))[::-1]
    return rng.permutation(np.repeat(np.arange(len(counts)), counts)), len(counts)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_classes_are_drawn_in_proportion_to_a_power_of_their_size(seed, power):
    labels, k = random_tail(seed)
    rows = by_class(labels, k, np.random.default_rng(seed), power=power)
    counts = np.bincount(labels, minlength=k)
    expected = len(labels) * counts**power / (counts**power).sum()
    drawn = np.bincount(labels[rows], minlength=k)
    assert len(rows) == len(labels)
    assert np.abs(drawn - expected).max() < 1 + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_within_a_class_images_take_turns(seed):
    labels, k = random_tail(seed)
    times = np.bincount(
        by_class(labels, k, np.random.default_rng(0), power=0.0), minlength=len(labels)
    )
    for c in range(k):
        assert np.ptp(times[labels == c]) <= 1


def test_instance_sampling_is_a_permutation_and_equal_to_power_one():
    labels, k = random_tail(0)
    rows = SAMPLERS["instance"](labels, k, np.random.default_rng(0))
    assert sorted(rows) == list(range(len(labels)))
    assert sorted(by_class(labels, k, np.random.default_rng(0), power=1.0)) == sorted(rows)


def test_a_class_without_images_is_never_drawn_and_breaks_nothing():
    labels = np.array([0, 0, 0, 2])
    rows = by_class(labels, 4, np.random.default_rng(0), power=0.0)
    assert set(labels[rows]) <= {0, 2} and len(rows) == 4


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_epoch_is_a_function_of_seed_and_epoch(name):
    labels, k = random_tail(3)
    one = epoch_order(name, labels, k, 1, 2)
    np.testing.assert_array_equal(one, epoch_order(name, labels, k, 1, 2))
    assert not np.array_equal(one, epoch_order(name, labels, k, 1, 3))
    assert not np.array_equal(one, epoch_order(name, labels, k, 2, 2))
