"""Every score against a value worked out by hand, or against scikit-learn on random tails."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, recall_score

from src import metrics
from src.config.judge import Judge

# true label 0, 0, 1, 2; predicted 0, 1, 1, 0; class 3 is never seen
LABELS = np.array([0, 0, 1, 2])
LOGITS = np.array([[5.0, 1, 0, 0], [1, 2, 0, 0], [0, 3, 0, 0], [4, 0, 1, 0]])


def test_scores_by_hand():
    assert metrics.accuracy(LOGITS, LABELS) == 0.5
    assert metrics.balanced_accuracy(LOGITS, LABELS) == pytest.approx((0.5 + 1 + 0) / 3)
    # F1: class 0 2·1/(2+2), class 1 2·1/(1+2), classes 2 and 3 none
    assert metrics.macro_f1(LOGITS, LABELS) == pytest.approx((0.5 + 2 / 3 + 0 + 0) / 4)
    np.testing.assert_array_equal(metrics.recalls(LOGITS, LABELS), [0.5, 1, 0, np.nan])


def test_top5_counts_ties_against_the_true_class():
    logits = np.array([[9.0, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [1, 1, 1, 1, 1, 1]])
    assert metrics.top5(logits, np.array([4, 5, 0])) == pytest.approx(1 / 3)


def test_nll_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])) + 7  # a shift changes nothing
    assert metrics.nll(logits, np.array([0, 2])) == pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2)
    assert np.isfinite(metrics.nll(np.array([[1e4, 0.0]]), np.array([1])))


def test_calibration_by_hand():
    # confidence 0.9 and right, 0.9 and wrong, 0.6 and right: |0.9 - 0.5| · 2/3 + |0.6 - 1| · 1/3
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    ece, confidence, right, size = metrics.calibration(np.log(p), np.array([0, 1, 0]), bins=10)
    assert ece == pytest.approx(0.4)
    assert size.sum() == 3 and size[6] == 1
    assert confidence[6] == pytest.approx(0.6) and right[6] == 1 and np.isnan(right[0])


@pytest.mark.parametrize("seed", range(5))
def test_scores_agree_with_scikit_learn_on_long_tails(seed):
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.3, 300) - 1, 11)  # some of 15 classes are never seen
    logits = rng.normal(size=(300, 15)) + 1.5 * np.eye(15)[labels]
    found, every = logits.argmax(1), np.arange(15)
    assert metrics.balanced_accuracy(logits, labels) == pytest.approx(
        recall_score(labels, found, labels=np.unique(labels), average="macro", zero_division=0)
    )
    assert metrics.macro_f1(logits, labels) == pytest.approx(
        f1_score(labels, found, labels=every, average="macro", zero_division=0)
    )
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert metrics.nll(logits, labels) == pytest.approx(log_loss(labels, p, labels=every))
    if set(found) <= set(labels):
        assert metrics.balanced_accuracy(logits, labels) == pytest.approx(
            balanced_accuracy_score(labels, found)
        )


def test_chunks_change_no_score(monkeypatch):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 7)).astype(np.float32), rng.integers(0, 7, 50)
    bins = np.array(["many"] * 3 + ["few"] * 4)
    whole = metrics.summary(logits, labels, bins)
    monkeypatch.setattr("src.metrics.outcomes.CHUNK", 30)
    assert [s.stop for s in metrics.chunks(9, 7)] == [4, 8, 9]
    assert metrics.summary(logits, labels, bins) == whole


def test_scores_of_outcomes_are_the_scores_of_logits():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(80, 9)), rng.integers(0, 9, 80)
    for name, whole in (metrics.METRICS | {"nll": metrics.nll}).items():
        outcome = metrics.OUTCOMES[name](logits, labels)
        assert metrics.SCORES[name](outcome, labels, 9) == whole(logits, labels)


def test_summary_averages_recall_over_the_classes_of_a_bin():
    row = metrics.summary(LOGITS, LABELS, np.array(["many", "medium", "medium", "few"]))
    assert list(row)[:4] == list(metrics.METRICS)
    assert (row["many"], row["medium"]) == (0.5, 0.5) and np.isnan(row["few"])


def test_the_noise_of_a_difference_is_its_standard_error():
    labels = np.zeros(400, int)
    before = np.zeros(400, int)
    after = (np.arange(400) % 10 == 0).astype(int)  # one image in ten gets worse
    gain, noise = found = metrics.paired_gain(before, after, labels, 2, "accuracy")
    assert gain == pytest.approx(-0.1)
    assert noise == pytest.approx(np.sqrt(0.1 * 0.9 / 400), rel=0.2)
    assert (found.low, found.high) == pytest.approx((gain - 1.96 * noise, gain + 1.96 * noise))
    assert metrics.paired_gain(before, before, labels, 2, "accuracy") == (0.0, 0.0)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1", "top5", "nll"])
def test_the_bootstrap_scores_what_was_drawn(metric):
    """How often an image is drawn counts as if it were there so often."""
    rng = np.random.default_rng(3)
    labels, images = rng.integers(0, 7, 60), 60
    before, after = (rng.integers(0, 7, images) for _ in range(2))
    if metric in ("top5", "nll"):
        before, after = before < 3, after < 4
    score, sign = metrics.SCORES[metric], -1 if metric == "nll" else 1
    draws, again = [], np.random.default_rng(0)
    for _ in range(metrics.DRAWS):
        rows = again.integers(images, size=images)
        a, b = (score(x[rows], labels[rows], 7) for x in (after, before))
        draws.append(sign * (a - b))
    gain, noise = metrics.paired_gain(before, after, labels, 7, metric)
    assert noise == pytest.approx(np.std(draws, ddof=1), rel=1e-9)
    assert gain == sign * (score(after, labels, 7) - score(before, labels, 7))


def test_a_lower_likelihood_loss_is_a_gain():
    worse, better = np.full(50, 2.0), np.full(50, 1.5)
    assert metrics.paired_gain(worse, better, np.zeros(50, int), 2, "nll").value == 0.5


@pytest.mark.parametrize(
    ("gain", "rule", "says"),
    [
        (metrics.Gain(0.026, 0.01), Judge(), None),
        (metrics.Gain(0.0, 0.0), Judge(), "is not above 0"),
        (metrics.Gain(0.024, 0.01), Judge(), "is within noise: not above 2.5 x 0.0100"),
        (metrics.Gain(0.02, 0.02), Judge(standard_errors=0), None),
        (metrics.Gain(0.02, 0.01), Judge(standard_errors=2), "not above 2 x"),
        (metrics.Gain(0.02, 0.01), Judge(min_gain=0.02), "is not above 0.02"),
        (metrics.Gain(), Judge(standard_errors=0), "is not above 0"),
    ],
)
def test_the_one_rule(gain, rule, says):
    found = gain.fails(rule)
    assert found is None if says is None else says in found


def test_a_gain_is_shown_with_its_interval():
    assert str(metrics.Gain(0.012, 0.009 / 1.96)) == "+0.012 [+0.003, +0.021]"
    assert metrics.gain_text(0.012, np.nan, np.nan) == "+0.012" and str(metrics.Gain()) == ""
