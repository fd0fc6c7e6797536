"""How many steps stage 2 makes: enough of them on few features, and what is asked for exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from src.config.heads import CRT, LWS, CosineHead, MaxNorm
from src.data.samplers import WEIGHTS
from src.logits import head_logits
from src.metrics import balanced_accuracy, recalls
from src.rebalance import HEADS, maxnorm
from src.rebalance.features import FeatureSet
from src.rebalance.sgd import plan, rows_of_epoch
from tests.fabricate import some_classes

CPU = torch.device("cpu")


def fit(spec, data):
    return HEADS[spec.head](spec, data, 0, CPU)


# ---- by hand -----------------------------------------------------------------------------------

PLANS = [
    # head, features → epochs, steps of each, features per step
    (CRT(), 30, (500, 1, 30)),
    (CRT(), 900, (500, 1, 512)),
    (CRT(), 8_000, (34, 15, 512)),  # 33 epochs would make 495
    (CRT(), 8_703, (32, 16, 512)),
    (CRT(), 8_704, (30, 17, 512)),  # 30 × 17 = 510: nothing changes from here on
    (CRT(), 12_406, (30, 24, 512)),  # CIFAR-10-LT
    (CRT(), 115_846, (30, 226, 512)),  # ImageNet-LT
    (LWS(), 900, (500, 1, 512)),
    (LWS(batch_size=64), 900, (36, 14, 64)),
    (MaxNorm(), 30, (300, 1, 30)),
    (MaxNorm(), 224, (100, 3, 64)),
    (MaxNorm(), 900, (30, 14, 64)),
    (CosineHead(), 900, (100, 1, 512)),
    (CosineHead(), 12_000, (30, 23, 512)),
    # a number is taken at its word, and a pass of the backbone is not made more often
    (CRT(epochs=30), 900, (30, 1, 512)),
    (MaxNorm(epochs=10), 30, (10, 1, 30)),
    (LWS(epochs=0), 900, (0, 1, 512)),
    (CosineHead(epochs=0), 900, (0, 1, 512)),
    (CRT(bn="train"), 900, (30, 1, 512)),
    (LWS(bn="train", epochs=50), 900, (50, 1, 512)),
]


@pytest.mark.parametrize(("spec", "images", "expected"), PLANS)
def test_epochs_and_steps_by_hand(spec, images, expected):
    assert plan(spec, images) == expected


@pytest.mark.parametrize("images", [2, 30, 900, 12_000, 100_000, 3_000_000])
@pytest.mark.parametrize("batch_size", [2, 64, 512, 65_536])
@pytest.mark.parametrize("kind", [CRT, LWS, MaxNorm, CosineHead])
def test_the_default_makes_enough_steps_of_anything(kind, batch_size, images):
    found = plan(kind(batch_size=batch_size), images)
    assert found.epochs >= 30 and found.epochs * found.steps >= kind.enough
    if found.epochs > 30:  # and not an epoch more than that
        assert (found.epochs - 1) * found.steps < kind.enough


@pytest.mark.parametrize("spec", [LWS(), LWS(epochs=7), MaxNorm(), CosineHead(), CRT(adapter=2)])
def test_what_is_planned_is_what_is_trained_and_the_rate_ends_at_zero(spec, monkeypatch):
    """Steps are counted at the optimizer, the rates it makes them with are those of one cosine."""
    data, rates = tail(90, 9, 4), []
    step = torch.optim.SGD.step

    def counted(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    fit(spec, data)
    epochs, steps, _ = plan(spec, 90)
    total = epochs * steps
    assert len(rates) == total
    cosine = spec.lr * (1 + np.cos(np.pi * np.arange(total) / total)) / 2
    np.testing.assert_allclose(rates, cosine, rtol=1e-6, atol=1e-9)


# ---- what an epoch means, however many there are -----------------------------------------------


@pytest.mark.parametrize("spec", [CRT(sampler="progressive"), CRT(sampler="progressive", epochs=5)])
def test_progressive_sampling_starts_as_the_data_and_ends_at_balance(spec):
    labels = np.repeat([0, 1, 2], [600, 240, 60])
    epochs = plan(spec, 900).epochs

    def shares(epoch: int) -> np.ndarray:
        return np.bincount(labels[rows_of_epoch(spec, labels, 3, 0, epoch)], minlength=3)

    assert shares(0).tolist() == [600, 240, 60]
    assert shares(epochs - 1).tolist() == [300, 300, 300]
    halfway = WEIGHTS["progressive"](np.array([600.0, 240, 60]), 0.5, 0.5)
    np.testing.assert_allclose(shares(epochs // 2), halfway, atol=2)


def test_maxnorm_projects_after_each_of_the_epochs(monkeypatch):
    longest = []

    def watched(weight, radius):
        project(weight, radius)
        longest.append(float(weight.detach().norm(dim=1).max()) / radius)

    project = maxnorm.project_
    monkeypatch.setattr(maxnorm, "project_", watched)
    fit(MaxNorm(), tail(90, 9, 4))
    assert len(longest) == 300  # one step each
    assert max(longest) <= 1 + 1e-5


def test_views_are_drawn_in_every_epoch_of_the_default():
    data = tail(40, 4, 3)
    data = replace(data, views=[data.plain, data.plain + 100])
    batches = data.batches(LWS(views=2), 0, CPU)
    second = [float((features.min(1).values > 50).float().mean()) for features, _ in batches(499)]
    assert 0 < second[0] < 1


# ---- what it is for ----------------------------------------------------------------------------


def tail(images: int, classes: int, width: int, seed: int = 0, ratio: float = 30) -> FeatureSet:
    """Long-tailed features around means, and the classifier that 60 steps on them leave: nearly all
    of the training images are right, and the rare classes are not."""
    share = ratio ** -(np.arange(classes) / (classes - 1))
    counts = np.maximum(np.round(share / share.sum() * images), 1).astype(int)
    counts[0] += images - counts.sum()
    assert counts.min() > 0 and counts.sum() == images
    f, labels = drawn(counts, width, seed)
    weight = torch.zeros(classes, width, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        z = torch.from_numpy(f) @ weight.T + bias
        F.cross_entropy(z, torch.from_numpy(labels)).backward()
        optimizer.step()
    head = {"weight": weight.detach().numpy(), "bias": bias.detach().numpy()}
    bins = (np.arange(classes) >= classes // 2).astype(int)
    return FeatureSet(f, [], labels, some_classes(classes, bins), ("linear", head))


def drawn(counts: np.ndarray, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    means = np.random.default_rng(99).normal(size=(len(counts), width))
    labels = np.repeat(np.arange(len(counts)), counts)
    noise = np.random.default_rng(seed).normal(size=(len(labels), width))
    return (means[labels] + noise).astype(np.float32), labels


def test_scales_learnt_on_900_features_of_100_classes_move_towards_balance():
    """30 steps, which is what 30 epochs make of them, change 11 % of the predictions."""
    data = tail(900, 100, 32)
    f, labels = drawn(np.full(100, 10), 32, seed=1)
    before = head_logits(f, data.classifier[1], "linear")
    after = head_logits(f, fit(LWS(), data)[1], "linear")
    rare = data.classes.bins == 1
    assert (after.argmax(1) != before.argmax(1)).mean() > 0.15
    assert balanced_accuracy(after, labels) > balanced_accuracy(before, labels) + 0.11
    assert recalls(after, labels)[rare].mean() > recalls(before, labels)[rare].mean() + 0.23
