"""Combiners: by hand, against slow references, and on members whose weights are known."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import log_softmax, softmax

import src.metrics.outcomes as outcomes
from src.config.ensemble import Ensemble
from src.config.judge import Judge
from src.ensemble.choice import choose
from src.ensemble.combiner import Pool
from src.ensemble.combiners import COMBINERS
from src.ensemble.members import log_probabilities
from src.errors import UserError
from src.fusion.likelihood import image_weights, likelihood

FITTED = ("simplex", "per_bin", "stacking")


def combiner(name: str, **keys):
    section = Ensemble(combiner={"name": name} | keys).combiner
    return COMBINERS[name](section)


def opinions(seed: int, members: int, n: int, k: int, strength: float = 1.5) -> list[np.ndarray]:
    """Log-probabilities [N, K] of members that have nothing in common."""
    rng = np.random.default_rng(seed)
    return [log_probabilities(strength * rng.normal(size=(n, k))) for _ in range(members)]


def drawn(seed: int, p: np.ndarray) -> np.ndarray:
    """Labels [N] from probabilities [N, K]."""
    u = np.random.default_rng(seed).random((len(p), 1))
    return (p.cumsum(1) < u).sum(1).clip(max=p.shape[1] - 1)


def fitted(name: str, members, labels, bins=None, metric="accuracy", **keys) -> dict:
    pool = Pool(members, labels, metric, bins)
    return combiner(name, **keys).fit(pool, np.ones(len(labels), bool))


# ---- what is not fitted ------------------------------------------------------------------------


def test_mean_probability_by_hand():
    a, b = (np.log(np.array([p])) for p in ([0.5, 0.3, 0.2], [0.1, 0.1, 0.8]))
    found = combiner("mean_probability").combine([a, b], {"shares": [0.5, 0.5]})
    np.testing.assert_allclose(np.exp(found), [[0.3, 0.2, 0.5]], rtol=1e-5)
    alone = combiner("mean_probability").combine([a, b], {"shares": [0.0, 1.0]})
    np.testing.assert_allclose(alone, b, rtol=1e-5)


def slow_ranks(row: np.ndarray) -> np.ndarray:
    """Classes above each class, and half of those that are its equals."""
    return np.array([(row > x).sum() + ((row == x).sum() - 1) / 2 for x in row])


def test_rank_mean_orders_classes_by_their_mean_rank():
    members = opinions(0, 3, 40, 7)
    members[0][:, 3] = members[0][:, 2]  # ties
    found = combiner("rank_mean").combine(members, {"shares": [1 / 3] * 3})
    for n in range(40):
        mean = np.mean([slow_ranks(m[n]) for m in members], axis=0)
        gaps = np.subtract.outer(mean, mean)
        above = np.subtract.outer(found[n], found[n])
        assert (above[gaps < -1e-9] > 0).all()  # a smaller mean rank is the larger score
        np.testing.assert_allclose(np.exp(-found[n]), 1 + mean, atol=1 / 6 + 1e-5)


def test_rank_mean_takes_the_surer_of_two_that_disagree():
    a, b = np.log(np.array([[0.9, 0.1]])), np.log(np.array([[0.4, 0.6]]))
    combine, shares = combiner("rank_mean").combine, {"shares": [0.5, 0.5]}
    assert combine([a, b], shares).argmax() == 0
    assert combine([np.log(np.array([[0.6, 0.4]])), np.log(1 - np.exp(a))], shares).argmax() == 1


def test_a_member_on_another_scale_does_not_outvote_by_rank():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=400)
    good = [log_probabilities(2 * np.eye(5)[labels] + rng.normal(size=(400, 5))) for _ in "ab"]
    loud = log_probabilities(50 * rng.normal(size=(400, 5)))
    section = Ensemble(combiner="rank_mean").combiner
    found = choose([*good, loud], labels, np.arange(400) % 4, "accuracy", section, Judge())
    assert found.method == "rank_mean" and found.gain.low > 0.1


# ---- the likelihood ----------------------------------------------------------------------------


def slow_loss(members, labels, s, weight, bias) -> float:
    total = 0.0
    for n, y in enumerate(labels):
        z = bias + sum(w * m[n].astype(float) for w, m in zip(weight, members, strict=True))
        total -= s[n] * log_softmax(z)[y]
    return total / len(labels)


def test_the_likelihood_and_its_gradient_are_those_of_a_slow_reference(monkeypatch):
    members, rng = opinions(1, 2, 30, 4), np.random.default_rng(2)
    labels, rows = rng.integers(4, size=30), rng.random(30) < 0.7
    weight, bias = rng.normal(size=(2, 4)), rng.normal(size=4)
    s = rng.random(int(rows.sum()))
    part = [m[rows] for m in members]

    def loss(x):
        return slow_loss(part, labels[rows], s, x[:8].reshape(2, 4), x[8:])

    at = np.append(weight.ravel(), bias)
    monkeypatch.setattr(outcomes, "CHUNK", 12)  # three images at once
    found = likelihood(Pool(members, labels, "accuracy"), rows, s, weight, bias)
    assert found[0] == pytest.approx(loss(at))
    numeric = approx_fprime(at, loss, 1e-6)
    np.testing.assert_allclose(np.append(found[1].ravel(), found[2]), numeric, atol=1e-5)


def test_classes_count_equally_where_the_metric_says_so():
    labels = np.array([0, 0, 0, 1, 2, 2])
    rows = np.array([True, True, True, True, False, True])
    members = opinions(0, 2, 6, 4)
    s = image_weights(Pool(members, labels, "balanced_accuracy"), rows, None)
    np.testing.assert_allclose(s, [5 / 9, 5 / 9, 5 / 9, 5 / 3, 5 / 3])
    assert set(image_weights(Pool(members, labels, "accuracy"), rows, None)) == {1.0}
    forced = image_weights(Pool(members, labels, "accuracy"), rows, True)
    np.testing.assert_array_equal(forced, s)


# ---- planted weights ---------------------------------------------------------------------------

PLANTED = np.array([0.6, 0.3, 0.1])


def test_simplex_recovers_the_weights_of_a_logarithmic_pool():
    members = opinions(3, 3, 8000, 5, strength=3)
    labels = drawn(4, softmax(sum(w * m for w, m in zip(PLANTED, members, strict=True)), axis=1))
    found = fitted("simplex", members, labels)
    np.testing.assert_allclose(found["shares"], PLANTED, atol=0.03)
    assert sum(found["shares"]) == pytest.approx(1)


def test_simplex_recovers_the_weights_of_a_linear_pool():
    members = opinions(5, 3, 8000, 5, strength=3)
    labels = drawn(6, sum(w * np.exp(m) for w, m in zip(PLANTED, members, strict=True)))
    found = fitted("simplex", members, labels, pool="linear")
    np.testing.assert_allclose(found["shares"], PLANTED, atol=0.03)


def test_few_images_are_held_at_the_mean():
    members, labels = opinions(7, 2, 4, 3), np.array([0, 1, 2, 0])
    for pool in ("log", "linear"):
        near = fitted("simplex", members, labels, pool=pool, shrinkage=1000)["shares"]
        np.testing.assert_allclose(near, 0.5, atol=0.01)
        far = fitted("simplex", members, labels, pool=pool, shrinkage=0)["shares"]
        assert abs(far[0] - 0.5) > 0.05


def test_per_bin_recovers_weights_by_bin():
    members, bins = opinions(8, 2, 8000, 6, strength=3), np.array([0, 0, 1, 1, 2, 2])
    w = np.array([[0.8, 0.5, 0.1], [0.2, 0.5, 0.9]])  # [M, bins]
    planted = sum(w[m, bins] * members[m] for m in range(2))
    found = fitted("per_bin", members, drawn(9, softmax(planted, axis=1)), bins)
    np.testing.assert_allclose(np.array(found["by_bin"]).T, w, atol=0.06)
    np.testing.assert_array_equal(found["weight"], np.float32(found["by_bin"])[bins].T)
    z = combiner("per_bin").combine(members, found)
    np.testing.assert_allclose(z, sum(f * m for f, m in zip(found["weight"], members, strict=True)))


def test_per_bin_needs_two_bins():
    with pytest.raises(UserError, match="needs classes in two bins or more, found 1"):
        fitted("per_bin", opinions(0, 2, 6, 3), np.arange(6) % 3, np.zeros(3, int))


def test_stacking_recovers_weights_beyond_the_simplex_and_biases():
    members, w = opinions(10, 2, 8000, 4, strength=2), [1.2, 0.5]
    bias = np.array([0.9, 0.0, -0.9, 0.0])
    labels = drawn(11, softmax(w[0] * members[0] + w[1] * members[1] + bias, axis=1))
    found = fitted("stacking", members, labels)
    np.testing.assert_allclose(found["weight"], w, atol=0.08)
    np.testing.assert_allclose(found["bias"] - found["bias"].mean(), bias, atol=0.1)


def test_a_class_with_two_images_does_not_run_away_and_one_without_stays():
    members = opinions(12, 2, 300, 5)
    labels = np.append(np.arange(298) % 3, [3, 3])
    found = fitted("stacking", members, labels)["bias"]
    free = fitted("stacking", members, labels, bias_shrinkage=0)["bias"]
    assert found[4] == free[4] == 0
    assert abs(found[3]) < 0.7 * abs(free[3])


def test_two_classes_and_one_fold():
    members, labels = opinions(13, 2, 40, 2), np.arange(40) % 2
    for name in FITTED:
        section = Ensemble(combiner=name).combiner
        bins = np.array([0, 1])
        two = choose(members, labels, np.arange(40) % 2, "accuracy", section, Judge(), bins)
        assert np.isfinite(two.combine(members)).all()
        one = choose(members, labels, np.zeros(40, int), "accuracy", section, Judge(), bins)
        assert one.method == "mean" and "two folds" in one.reason


# ---- the judge ---------------------------------------------------------------------------------


def specialists(seed: int, n: int = 600):
    """One member knows labels 0 … 2, the other 3 … 5; and labels, folds and bins."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(6, size=n)
    knows = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    members = [
        log_probabilities(2.5 * k * np.eye(6)[labels] + rng.normal(size=(n, 6))) for k in knows
    ]
    return members, labels, np.arange(n) % 4, np.array([0, 0, 0, 1, 1, 1])


def test_per_bin_beats_the_mean_where_members_know_different_bins():
    members, labels, fold, bins = specialists(0)
    section = Ensemble(combiner="per_bin").combiner
    found = choose(members, labels, fold, "balanced_accuracy", section, Judge(), bins)
    assert found.method == "per_bin" and found.gain.low > 0
    many, few = found.final["by_bin"]
    assert many[0] > 0.8 and few[1] > 0.8


@pytest.mark.parametrize("name", [*FITTED, "mean_probability", "rank_mean"])
def test_where_the_mean_is_right_it_is_rarely_replaced(name):
    kept, section = 0, Ensemble(combiner=name).combiner
    for seed in range(12):
        rng = np.random.default_rng(seed)
        labels = rng.integers(5, size=200)
        members = [
            log_probabilities(np.eye(5)[labels] + rng.normal(size=(200, 5))) for _ in range(4)
        ]
        bins = np.array([0, 0, 1, 1, 1])
        found = choose(members, labels, np.arange(200) % 4, "accuracy", section, Judge(), bins)
        kept += found.method == name
    assert kept <= 4  # one standard error: about one in six


@pytest.mark.parametrize("name", FITTED)
def test_what_is_fitted_on_other_folds_does_not_know_a_folds_labels(name):
    members, labels, fold, bins = specialists(1, n=120)
    other = labels.copy()
    other[fold == 2] = (other[fold == 2] + 1) % 6
    fits = [
        combiner(name).fit(Pool(members, y, "accuracy", bins), fold != 2) for y in (labels, other)
    ]
    assert str(fits[0]) == str(fits[1])
