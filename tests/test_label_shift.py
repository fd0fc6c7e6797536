"""The class prior of unlabelled images: what is planted is found, and else nothing."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

import src.ensemble.label_shift as judge_module
from src.artifacts.files import read_arrays, read_json
from src.config.judge import Judge
from src.config.read import parse_config
from src.ensemble.ensemble import ensemble, shift_of
from src.ensemble.label_shift import label_shift
from src.errors import UserError
from src.fusion.decision import Decision
from src.fusion.pool import Pool
from src.fusion.shift import bbse, blocks_of, confusion, corrected, distance, em, matched
from tests.fabricate import (
    config,
    digits_runs,
    digits_world,
    write_dataset,
    write_experiment,
    write_predictions,
)

RULE = Judge()
K = 6
PRIOR = np.geomspace(1, 0.1, K) / np.geomspace(1, 0.1, K).sum()


def world(seed=3, q=PRIOR, n=1200, scale=1.0, adjusted=0.0, bias=0.0, twins=False):
    """Out of fold: log-probabilities, labels, folds; test of prior q: the same; class counts.
    scale, adjusted, bias: how the logits were spoilt: temperature, prior taken out, per class ·
    twins: two classes that look the same"""
    rng = np.random.default_rng(seed)
    centre = 1.3 * rng.normal(size=(K, 4))
    if twins:
        centre[1] = centre[0]

    def images(prior):
        y = rng.choice(K, n, p=prior)
        f = centre[y] + rng.normal(size=(n, 4))
        z = f @ centre.T - np.square(centre).sum(1) / 2 + (1 - adjusted) * np.log(PRIOR)
        return (scale * z + bias).astype(np.float32), y

    oof, labels = images(PRIOR)
    test, truth = images(q)
    return oof, labels, np.arange(n) % 3, test, truth, np.bincount(labels, minlength=K)


def judged(method, found, metric="accuracy", target=None, rule=RULE):
    oof, labels, fold, test, _, counts = found
    return label_shift(method, oof, labels, fold, test, counts, metric, rule, target)


def accuracy(logits, truth):
    return np.mean(logits.argmax(1) == truth)


# ---- the estimators ------------------------------------------------------------------------------


def test_em_is_the_iteration_of_its_formula():
    rng = np.random.default_rng(0)
    p, prior = softmax(2 * rng.normal(size=(300, K)), axis=1), PRIOR
    q = prior.copy()
    for _ in range(2000):
        posterior = p * q / prior
        posterior /= posterior.sum(1, keepdims=True)
        q = (posterior.sum(0) + K * prior) / (300 + K)
    found = em(lambda: [(p[:100], np.ones(100)), (p[100:], np.ones(200))], prior)
    assert distance(found, q) < 0.01
    counted = em(lambda: [(p, np.arange(300) % 3 * 1.0)], prior)
    repeated = np.repeat(p, np.arange(300) % 3, axis=0)
    np.testing.assert_allclose(counted, em(lambda: [(repeated, np.ones(300))], prior), rtol=1e-5)


def test_bbse_solves_its_equation():
    a = np.array([[0.8, 0.1, 0.0], [0.2, 0.7, 0.3], [0.0, 0.2, 0.7]])
    q = np.array([0.2, 0.3, 0.5])
    found, misfit = bbse(a, a @ q)
    np.testing.assert_allclose(found, q, atol=1e-9)
    assert misfit == pytest.approx(0, abs=1e-9)
    assert bbse(a, np.array([1.0, 0, 0]))[1] > 0.1  # no prior gives such predictions


def test_the_confusion_matrix_by_hand_and_a_class_without_images():
    a = confusion(np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([1.0, 3.0, 1.0]), 3)
    np.testing.assert_allclose(a, [[0.25, 0, 0], [0.75, 1, 0], [0, 0, 1]])


def test_matching_makes_the_mean_probability_the_target():
    z = 2 * np.random.default_rng(1).normal(size=(500, K)).astype(np.float32)
    target = PRIOR[::-1]
    bias = matched(blocks_of(z, 1.0, np.zeros(K)), target)
    assert distance(softmax(z + bias, axis=1).mean(0), target) < 2e-4
    none = matched(blocks_of(z, 1.0, np.zeros(K)), np.append(0, np.full(K - 1, 1 / (K - 1))))
    assert np.isfinite(none).all() and softmax(z + none, axis=1).mean(0)[0] < 1e-3


@pytest.mark.parametrize("spoilt", [{"scale": 3.0}, {"adjusted": 1.0}, {"bias": np.arange(K) / 2}])
def test_what_was_done_to_the_logits_is_taken_back(spoilt):
    right, labels, *_ = world(n=3000)
    wrong = world(n=3000, **spoilt)[0]
    beta, bias = corrected(wrong, labels, PRIOR)
    error = softmax(beta * wrong + bias, axis=1) - softmax(right, axis=1)
    assert np.abs(error).mean() < 0.01


# ---- planted shifts ------------------------------------------------------------------------------


@pytest.mark.parametrize("spoilt", [{}, {"scale": 3.0}, {"bias": np.arange(K) % 2}])
@pytest.mark.parametrize("method", ["em", "bbse"])
def test_a_planted_shift_is_found_and_the_gain_is_in_its_interval(method, spoilt):
    found = world(q=PRIOR[::-1], **spoilt)
    shift, truth = judged(method, found, rule=Judge(standard_errors=1)), found[4]
    assert shift.kept
    q = np.bincount(truth, minlength=K) / len(truth)
    assert distance(shift.prior, q) < 2 * shift.found["error"] + 0.02
    after = shift.apply(found[3])
    np.testing.assert_allclose(np.exp(after).sum(1), 1, rtol=1e-4)
    gain = accuracy(after, truth) - accuracy(found[3], truth)
    assert gain > 0.05 and shift.gain.low - 0.02 < gain < shift.gain.high + 0.02


def test_twenty_shifts_are_within_the_error_that_is_told():
    """The interval of the estimate: the error on images drawn with the prior that was found."""
    rng, inside = np.random.default_rng(7), 0
    for seed in range(20):
        found = world(seed, q=rng.dirichlet(np.full(K, 2.0)), n=500)
        shift, q = judged("em", found), np.bincount(found[4], minlength=K) / 500
        inside += distance(shift.prior, q) < 2 * shift.found["error"]
    assert inside >= 17


@pytest.mark.parametrize("method", ["em", "bbse", "match"])
def test_without_a_shift_nothing_is_done(method):
    kept = [judged(method, world(seed, n=240), target=PRIOR).kept for seed in range(50)]
    assert sum(kept) < 5


def test_matching_is_kept_where_the_networks_are_biased():
    found = world(q=np.full(K, 1 / K), bias=np.array([2, -1, 0, 1, -2, 0.5]))
    shift = judged("match", found, target=np.full(K, 1 / K))
    assert shift.kept and shift.gain.low > 0.02
    after = shift.apply(found[3])
    assert distance(np.exp(after).mean(0), np.full(K, 1 / K)) < 1e-3
    assert accuracy(after, found[4]) > accuracy(found[3], found[4]) + 0.05


# ---- refusals, each with its reason --------------------------------------------------------------


def test_a_metric_that_counts_classes_the_same_needs_no_prior():
    shift = judged("em", world(q=PRIOR[::-1], n=60), "balanced_accuracy")
    assert not shift.kept and "counts every class the same" in shift.reason
    logits = np.zeros((2, K))
    assert shift.apply(logits) is logits


def test_something_else_than_a_shift_is_told_apart_by_the_fit_of_bbse():
    oof, labels, fold, test, truth, counts = world(n=1500)
    right = np.bincount(labels[oof.argmax(1) == labels], minlength=K) / counts
    test[:, right.argmin()] += 50  # all are called this, more than are of images that are it
    shift = judged("bbse", (oof, labels, fold, test, truth, counts))
    assert not shift.kept and "something else has changed" in shift.reason


def test_probabilities_that_cannot_be_calibrated_are_no_ground_to_stand_on():
    rng = np.random.default_rng(5)
    oof, labels, fold, test, truth, counts = world(q=PRIOR[::-1])
    half = rng.random(len(labels)) < 0.5  # half of the images are far too sure, wrongly
    oof = np.where(half[:, None], 8 * rng.normal(size=oof.shape), oof).astype(np.float32)
    shift = judged("em", (oof, labels, fold, test, truth, counts))
    assert not shift.kept and "ECE" in shift.reason


def test_a_confusion_matrix_without_inverse_and_one_too_large(monkeypatch):
    shift = judged("bbse", world(q=PRIOR[::-1], twins=True))
    assert not shift.kept and "condition number" in shift.reason
    monkeypatch.setattr(judge_module, "LARGEST", 5)
    shift = judged("bbse", world(n=60))
    assert not shift.kept and "confusion matrix of 6 classes cannot be known" in shift.reason


def test_two_classes_one_fold_and_few_images():
    oof, labels, _, test, truth, _ = world(n=90)
    two, y = oof[:, :2], np.minimum(labels, 1)
    fold, counts = np.zeros(90, int), np.bincount(y, minlength=2)
    for method in ("em", "bbse", "match"):
        by = (counts, "accuracy", Judge(), np.full(2, 0.5))
        shift = label_shift(method, two, y, fold, test[:7, :2], *by)
        assert np.isfinite(shift.apply(test[:, :2])).all()


def test_a_sample_of_the_images_is_enough_where_there_are_many(monkeypatch):
    rule = Judge(standard_errors=1)
    whole = judged("em", world(q=PRIOR[::-1]), rule=rule)
    monkeypatch.setattr(judge_module, "CELLS", 400 * K)
    part = judged("em", world(q=PRIOR[::-1]), rule=rule)
    assert part.kept and distance(part.prior, whole.prior) < 0.08


# ---- 06 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ensemble": {"label_shift": "match"}}, "match imposes target_prior, which is null"),
        (
            {"ensemble": {"label_shift": "em"}, "target_prior": "balanced"},
            "em estimates the test's class prior, which target_prior .balanced. says",
        ),
    ],
)
def test_what_contradicts_itself_is_an_error_of_the_config(keys, message):
    with pytest.raises(UserError, match=message):
        parse_config(keys)


def test_06_adapts_to_the_test_and_says_so(tmp_path, monkeypatch):
    """The test images are all of the rarer half of the classes."""
    monkeypatch.chdir(tmp_path)
    found = digits_world()
    rare = found.test_labels >= 5
    tests = {n: getattr(found, f"test_{n}")[rare] for n in ("ids", "features", "labels")}
    found = replace(found, **{f"test_{n}": values for n, values in tests.items()})
    write_dataset(found)
    write_experiment(found, "exp")
    write_predictions(found, "exp", ["stage1"])
    keys = {"metric": "accuracy", "judge": {"standard_errors": 0}}
    ask = {"members": ["stage1"], "label_shift": "em"}
    settings = config(ensemble=ask, **keys)
    before = ensemble([config(ensemble={"members": ["stage1"]}, **keys)], ["exp"])
    assert before.shift is None
    after = ensemble([settings], ["exp"], overwrite=True)
    assert after.shift.kept and after.score["accuracy"] > before.score["accuracy"]
    facts = read_json("runs/digits/submissions/exp.manifest.json")
    assert facts["label_shift"]["kept"] and facts["label_shift"]["reason"] == after.shift.reason
    assert facts["settings"]["label_shift"] == "em"
    arrays = read_arrays("runs/digits/submissions/exp.params.npz")
    shift = facts["label_shift"]
    bias = arrays[shift["bias"]["npz"]]
    test = np.mean([found.logits("stage1", k, found.test_features) for k in range(3)], axis=0)
    mine = log_softmax(shift["beta"] * log_softmax(test, axis=1) + bias, axis=1)
    order = np.argsort(found.test_ids)
    saved = read_arrays("runs/digits/submissions/exp.npz")["logits"]
    np.testing.assert_allclose(saved, mine[order], atol=1e-3)


def test_06_leaves_alone_what_it_cannot_recover(tmp_path, monkeypatch):
    """A flat test set, where the rarest classes have three images to learn the shift from."""
    monkeypatch.chdir(tmp_path)
    digits_runs(exp=0.0)
    saved = {}
    for method in ("none", "em"):
        keys = {"members": ["stage1"], "label_shift": method}
        done = ensemble([config(ensemble=keys, metric="accuracy")], ["exp"], overwrite=True)
        saved[method] = done.submission.read_bytes()
    assert not done.shift.kept and "not recovered" in done.shift.reason
    assert saved["em"] == saved["none"]


def test_a_rule_for_decisions_and_a_shift_are_not_stacked():
    oof, labels, fold, test, counts, *_ = world(n=60)
    pool, ruled = Pool([oof], labels, "macro_f1"), Decision("macro_f1", "expected_utility", "")
    asked = config(ensemble={"label_shift": "em"})
    shift = shift_of(asked, pool, oof, fold, test, ruled, counts)
    assert not shift.kept and "ensemble.decision: plain goes without it" in shift.reason
