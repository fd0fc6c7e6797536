"""Calibration errors with several binnings, against loops written from their formulae."""

import numpy as np
import pytest
from scipy.special import softmax

from src.metrics import by_bin, classwise, equal_mass, equal_width, outcomes_of


def images(seed=0, n=700, k=4, scale=1.0):
    """Logits, times `scale`, and labels that are as the logits without it say."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, k))
    y = (softmax(z, axis=1).cumsum(1) > rng.random((n, 1))).argmax(1)
    return (scale * z).astype(np.float32), y


def slow_ece(confidence, right, groups):
    n = len(confidence)
    return sum(
        len(g) / n * abs(np.mean(confidence[g]) - np.mean(right[g])) for g in groups if len(g)
    )


def test_equal_width_is_the_loop_over_intervals():
    z, y = images(scale=2.0)
    p = softmax(z, axis=1)
    c, right = p.max(1), p.argmax(1) == y
    groups = [np.flatnonzero((c >= b / 10) & (c < (b + 1) / 10)) for b in range(10)]
    error, mean, share, size = equal_width(c, right, 10)
    assert error == pytest.approx(slow_ece(c, right, groups))
    assert size.sum() == len(y) and np.isnan(mean[0]) and np.isnan(share[0])  # 1 / K is the least
    assert outcomes_of(z, y).calibration(y, 10)[0] == pytest.approx(error)


def test_equal_mass_has_as_many_images_in_each_bin():
    z, y = images(scale=2.0)
    p = softmax(z, axis=1)
    c, right = p.max(1), p.argmax(1) == y
    error, _, _, size = equal_mass(c, right, 7)
    assert size.tolist() == [100] * 7
    assert error == pytest.approx(slow_ece(c, right, np.split(np.argsort(c), 7)))


def test_equal_confidences_stay_together_and_nothing_is_no_error():
    c, right = np.full(50, 0.75), np.arange(50) % 2 == 0
    error, _, _, size = equal_mass(c, right, 5)
    assert error == pytest.approx(0.25) and sorted(size)[-1] == 50
    assert equal_width(np.ones(3), np.ones(3, bool))[0] == 0
    assert equal_mass(np.empty(0), np.empty(0, bool))[0] == 0


def test_classwise_is_the_loop_over_classes_and_intervals(monkeypatch):
    monkeypatch.setattr("src.metrics.outcomes.CHUNK", 64)
    z, y = images(k=3)
    p = softmax(z.astype(np.float64), axis=1)
    for c, found in enumerate(classwise(z, y, 8)):
        groups = [np.flatnonzero((p[:, c] * 8).astype(int) == b) for b in range(8)]
        assert found == pytest.approx(slow_ece(p[:, c], y == c, groups))


def test_a_class_overrated_without_being_predicted_is_seen_by_class_alone():
    n = 3000
    rng = np.random.default_rng(1)
    y = (rng.random(n) >= 0.6).astype(int)  # 0 in 60 of 100, else 1; never 2
    z = np.log(np.tile([0.6, 0.01, 0.39], (n, 1)))
    assert outcomes_of(z, y).calibration(y)[0] < 0.03
    np.testing.assert_allclose(classwise(z, y), [0, 0.39, 0.39], atol=0.03)


def test_a_planted_temperature_raises_every_error():
    for seed in range(5):
        errors = []
        for scale in (1.0, 3.0):
            z, y = images(seed, n=4000, scale=scale)
            o = outcomes_of(z, y)
            right = o.predicted == y
            both = [f(o.confidence, right)[0] for f in (equal_width, equal_mass)]
            errors.append([*both, classwise(z, y).mean()])
        assert (np.array(errors[1]) > 2 * np.array(errors[0])).all()


def test_by_bin_tells_the_bin_that_is_too_sure():
    z, y = images(n=4000)
    rare = z.argmax(1) >= 2
    z = np.where(rare[:, None], 4 * z, z)
    bins = np.array(["many", "many", "few", "few"])
    o = outcomes_of(z, y)
    found = by_bin(o.confidence, o.predicted == y, o.predicted, bins)
    assert list(found) == ["many", "few"]
    assert found["many"][0] < 0.06 < 0.12 < found["few"][0]
    assert found["few"][1] > found["few"][2] + 0.1  # confidence above accuracy
    assert found["few"][3] == rare.sum() and found["many"][3] == (~rare).sum()
    none = by_bin(o.confidence, o.predicted == y, np.zeros(4000, int), bins)
    assert list(none) == ["many"]
    few = by_bin(o.confidence[:19], o.predicted[:19] == y[:19], np.zeros(19, int), bins)
    error, confidence, accuracy, count = few["many"]  # of so few images in one bin
    assert count == 19 and error == pytest.approx(abs(confidence - accuracy))
