"""Samplers: what they promise about frequencies, over random tails, time, processes and streams."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src.config.read import parse_config
from src.data.dataset import Epochs, collate
from src.data.samplers import SAMPLERS, WEIGHTS, by_class, epoch_order, whole_draws
from src.training.job import build_epochs


def random_tail(seed: int) -> np.ndarray:
    """Labels of up to 30 classes of 0 … 80 images, shuffled."""
    rng = np.random.default_rng(seed)
    counts = np.floor(80 * rng.random(rng.integers(2, 31)) ** 4).astype(int)
    counts[rng.integers(len(counts))] += 3
    return rng.permutation(np.repeat(np.arange(len(counts)), counts))


def expected(sampler: str, counts: np.ndarray, time: float, power: float) -> np.ndarray:
    """P(c), written down once more."""
    present = counts > 0
    pi, uniform = counts / counts.sum(), present / present.sum()
    with np.errstate(divide="ignore"):
        weight = {
            "instance": pi,
            "class_balanced": uniform,
            "square_root": np.sqrt(counts),
            "power": np.where(present, counts.astype(float) ** power, 0),
            "progressive": (1 - time) * pi + time * uniform,
            "reversed": np.where(present, 1 / counts, 0),
        }[sampler]
    return weight / weight.sum()


def test_the_streams_stay_what_they_are():
    labels = np.repeat(np.arange(4), [50, 7, 2, 1])
    want = {
        "instance": "757084d98075",
        "class_balanced": "167b8d1fa33b",
        "square_root": "8bb5035fe565",
    }
    for sampler, digest in want.items():
        order = epoch_order(sampler, labels, 4, 5, 2).astype("<i8")
        assert hashlib.sha256(order.tobytes()).hexdigest()[:12] == digest


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("seed", range(6))
def test_frequencies(sampler, seed):
    labels, epochs, power = random_tail(seed), 5, -0.7
    num_classes = labels.max() + 2  # the last class has no image
    counts = np.bincount(labels, minlength=num_classes)
    for epoch in range(epochs):
        order = epoch_order(sampler, labels, num_classes, seed, epoch, epochs, power=power)
        assert len(order) == len(labels)
        share = len(labels) * expected(sampler, counts, epoch / (epochs - 1), power)
        drawn = np.bincount(labels[order], minlength=num_classes)
        assert (np.abs(drawn - share) < 1 + 1e-6).all()
        times = np.bincount(order, minlength=len(labels))
        for label in np.flatnonzero(counts):  # no image twice before all were drawn once
            assert np.ptp(times[labels == label]) <= 1


def test_expected_draws_are_unbiased():
    labels = np.repeat(np.arange(3), [20, 6, 1])
    orders = [epoch_order("reversed", labels, 3, 0, epoch) for epoch in range(2000)]
    mean = np.mean([np.bincount(labels[order]) for order in orders], axis=0)
    want = 27 * np.array([1 / 20, 1 / 6, 1]) / (1 / 20 + 1 / 6 + 1)  # 1.11, 3.70, 22.19
    np.testing.assert_allclose(mean, want, atol=0.05)


@pytest.mark.parametrize("power", [0.5, -1.0])
def test_draws_are_unbiased_where_most_classes_have_a_fraction_left(power):
    counts = np.geomspace(30, 3, 100).round()
    share = counts.sum() * counts**power / (counts**power).sum()
    rng = np.random.default_rng(0)
    draws = np.array([whole_draws(share, rng) for _ in range(4000)])
    assert (draws.sum(1) == counts.sum()).all() and (np.abs(draws - share) < 1).all()
    assert np.abs(draws.mean(0) - share).max() < 0.05  # six standard errors of one class


def test_limits_tie_the_samplers_together():
    counts = np.array([90.0, 7, 0, 1])
    progressive, powers = WEIGHTS["progressive"], WEIGHTS["power"]
    np.testing.assert_array_equal(progressive(counts, 0, 0.5), counts)  # instance
    np.testing.assert_allclose(progressive(counts, 1, 0.5), 98 / 3 * np.array([1, 1, 0, 1]))
    np.testing.assert_array_equal(powers(counts, 0, 1.0), counts)
    labels = random_tail(3)
    order = epoch_order("power", labels, labels.max() + 1, 0, 4)
    np.testing.assert_array_equal(order, epoch_order("square_root", labels, labels.max() + 1, 0, 4))
    last = epoch_order("progressive", labels, labels.max() + 1, 0, 1, 2)
    balanced = epoch_order("class_balanced", labels, labels.max() + 1, 0, 1)
    np.testing.assert_array_equal(last, balanced)
    even = np.repeat(np.arange(4), 6)
    np.testing.assert_array_equal(
        epoch_order("reversed", even, 4, 1, 2), epoch_order("class_balanced", even, 4, 1, 2)
    )


def test_smaller_classes_never_come_less_often_in_reversed():
    weight = WEIGHTS["reversed"](np.array([50.0, 20, 20, 3, 1]), 0, 0.5)
    assert (np.diff(weight) >= 0).all() and weight[0] == 1 and weight[-1] == 50


def some_epochs(world: int, rank: int, sampler="reversed", second="instance") -> Epochs:
    train = {
        "sampler": sampler,
        "second_sampler": second,
        "batch_size": 8,
        "mixing": {"manifold": 1.0},
    }
    config = parse_config({"train": {**train, "epochs": 4}, "seed": 3})
    labels = random_tail(11)
    data = SimpleNamespace(num_classes=labels.max() + 1)
    accelerator = SimpleNamespace(process_index=rank, num_processes=world)
    epochs = build_epochs(
        SimpleNamespace(config=config, data=data, accelerator=accelerator), labels
    )
    epochs.epoch = 2
    return epochs


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_processes_draw_what_one_draws(sampler):
    alone = list(some_epochs(1, 0, sampler))
    ranks = [list(some_epochs(2, rank, sampler)) for rank in range(2)]
    assert len(alone) == len(ranks[0]) == len(ranks[1]) > 3
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert len(whole) == 16 and len(first) == len(second) == 8
        # stream 1 of both, then stream 2 of both
        assert first[:4] + second[:4] + first[4:] + second[4:] == whole


def test_streams_are_drawn_and_augmented_independently():
    draws = [draw for batch in some_epochs(1, 0, "instance", "instance") for draw in batch]
    positions = [position for _, position, _ in draws]
    assert len(set(positions)) == len(positions)
    batches = list(some_epochs(1, 0, "instance", "instance"))
    first = [row for batch in batches for _, _, row in batch[:8]]
    second = [row for batch in batches for _, _, row in batch[8:]]
    assert len(set(first)) == len(first) and len(set(second)) == len(second)
    assert first != second


def test_images_of_a_class_are_taken_in_the_order_of_their_rows():
    """Before they are shuffled: an order of the sort's own would be that of a machine."""
    still = SimpleNamespace(permutation=lambda x: x, random=lambda: 0.5)
    labels = np.random.default_rng(0).integers(3, size=3000)
    counts = np.bincount(labels).astype(float)
    order = by_class(labels, counts, counts, still)
    np.testing.assert_array_equal(order, np.argsort(labels, kind="stable"))


def test_the_first_stream_does_not_depend_on_the_second():
    labels = random_tail(2)
    args = ("class_balanced", labels, labels.max() + 1, 7, 1)
    np.testing.assert_array_equal(epoch_order(*args), epoch_order(*args, stream=0))
    assert (epoch_order(*args) != epoch_order(*args, stream=1)).any()


def test_collate_tells_the_streams_apart():
    items = [(np.full((2, 2, 3), i, np.uint8), i, 9 - i) for i in range(6)]
    batch = collate(items, streams=2)
    assert batch.labels.tolist() == [0, 1, 2] and batch.other.labels.tolist() == [3, 4, 5]
    assert batch.rows.tolist() == [9, 8, 7] and batch.other.rows.tolist() == [6, 5, 4]
    assert batch.images.shape == batch.other.images.shape == (3, 3, 2, 2)
    parts = batch.split(3)
    assert [part.other.labels.item() for part in parts] == [3, 4, 5]
    assert batch.to(torch.device("cpu")).other.images[2, 0, 0, 0] == 5
    assert collate(items).other is None


def test_deferred_sampling_switches_at_its_start():
    tree = {"epochs": 10, "deferred": {"sampling": True, "start": 0.7}, "batch_size": 4}
    labels = np.repeat(np.arange(3), [40, 5, 1])
    job = SimpleNamespace(
        config=parse_config({"train": tree}),
        data=SimpleNamespace(num_classes=3),
        accelerator=SimpleNamespace(process_index=0, num_processes=1),
    )
    epochs = build_epochs(job, labels)
    for epoch in range(10):
        sampler = "instance" if epoch < 7 else "class_balanced"
        want = epoch_order(sampler, labels, 3, 0, epoch)
        np.testing.assert_array_equal(epochs.orders(epoch), want)
