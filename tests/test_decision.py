"""Decisions: on planted posteriors a rule finds the optimum, and it is kept for nothing less."""

from itertools import product

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import cohen_kappa_score, f1_score

from src import metrics
from src.artifacts.files import read_arrays, read_json, read_table
from src.artifacts.predictions import load_predictions
from src.artifacts.work import RUNS
from src.config.judge import Judge
from src.config.metric import FAMILIES, PLAIN
from src.ensemble.ensemble import ensemble
from src.errors import UserError
from src.fusion.decision import OF_METRIC, Decision, calibrated, decide, decided, rule_of
from src.fusion.decision_rules import RULES, fit_ordinal, fit_utility
from src.fusion.store import unpack
from src.posthoc.calibrate import posthoc
from tests.fabricate import (
    CLASS_IDS,
    DATASET,
    config,
    digits_runs,
    write_dataset,
)

RULE = Judge()


def planted(seed: int, counts=(3200, 200, 200), strength=1.2):
    """Honest log-posteriors and labels: Gaussian evidence for the true class, rare classes last."""
    rng = np.random.default_rng(seed)
    labels, k = np.repeat(np.arange(len(counts)), counts), len(counts)
    z = rng.normal(size=(len(labels), k)) + strength * np.eye(k)[labels]
    # log p(z | c) = strength z_c + what is the same for all classes
    logits = strength * z + np.log(np.array(counts) / sum(counts))
    return log_softmax(logits, axis=1).astype(np.float32), labels, rng.integers(0, 4, len(labels))


def ordered(seed: int, n=900, k=5, noise=1.0):
    """Honest log-posteriors of places on a scale that is seen through noise; the ends are rare."""
    rng = np.random.default_rng(seed)
    prior = np.array([0.05, 0.25, 0.4, 0.25, 0.05])
    labels = rng.choice(k, n, p=prior)
    seen = labels + rng.normal(0, noise, n)
    log_p = np.log(prior) - (seen[:, None] - np.arange(k)) ** 2 / (2 * noise**2)
    return log_softmax(log_p, axis=1).astype(np.float32), labels, rng.integers(0, 4, n)


def best_weights(log_p, labels, steps=13) -> np.ndarray:
    """Slow reference: of all class weights on a grid, those of the highest macro F1 here."""
    grid = np.linspace(0, 3.6, steps)
    options = [np.array([0, *pair]) for pair in product(grid, grid)]
    return max(options, key=lambda w: macro(log_p + w, labels))


def macro(scores, labels) -> float:
    every = np.arange(scores.shape[1])
    return f1_score(labels, scores.argmax(1), labels=every, average="macro", zero_division=0)


@pytest.mark.parametrize("seed", range(3))
def test_expected_utility_recovers_the_optimum_of_macro_f1(seed):
    """Where the most probable class seldom is a rare one, the rule comes to the best weights."""
    log_p, labels, fold = planted(seed)
    new, truth, _ = planted(seed + 100, counts=(8000, 500, 500))
    found = decide(log_p, labels, fold, "macro_f1", RULE)
    assert found.rule == "expected_utility" and found.gain.low > 0
    reference = macro(new + best_weights(new, truth), truth)  # chosen where it is scored
    plain, mine = macro(new, truth), macro(found.apply(new), truth)
    assert reference - plain > 0.05
    assert mine > plain + 0.8 * (reference - plain)


def test_the_gain_is_that_of_rules_fitted_on_the_other_folds():
    log_p, labels, fold = planted(1)
    found = decide(log_p, labels, fold, "macro_f1", RULE)
    scores = found.cross_fitted(log_p, fold)
    assert found.after == pytest.approx(macro(scores, labels))
    assert found.before == pytest.approx(macro(log_p, labels))
    assert found.gain.value == pytest.approx(found.after - found.before)
    other = labels.copy()
    other[fold == 2] = np.roll(labels[fold == 2], 7)  # as many of each class
    again = decide(log_p, other, fold, "macro_f1", Judge(standard_errors=0))
    np.testing.assert_equal(again.per_fold[2], found.per_fold[2])


@pytest.mark.parametrize(("metric", "beta"), [("f2", 2.0), ("f0.5", 0.5), ("weighted_f1", 1.0)])
def test_one_more_claim_is_made_where_it_raises_the_expected_score(metric, beta):
    """No single image's decision can be changed for a better expected score, worked out slowly."""
    log_p, labels, _ = planted(2, counts=(60, 30, 8, 4))
    p = np.exp(log_p).astype(np.float64)
    params = fit_utility(p, labels, metric, np.ones(len(p))) | {"strength": 1.0}
    decided = (params["weight"] * (p - params["offset"])).argmax(1)
    images = p.sum(0)
    worth = images / images.sum() if metric == "weighted_f1" else np.full(4, 0.25)

    def expected(d):
        claimed = np.bincount(d, minlength=4)
        right = np.array([p[d == c, c].sum() for c in range(4)])
        below = beta**2 * images + claimed
        return worth @ ((1 + beta**2) * right / below)

    start, gains = expected(decided), []
    assert start >= expected(p.argmax(1)) - 1e-12
    for i, c in product(range(len(p)), range(4)):
        changed = decided.copy()
        changed[i] = c
        gains.append(expected(changed) - start)
    assert max(gains) < 0.01 * start  # the rule treats one image as few among many


@pytest.mark.parametrize("seed", range(3))
def test_the_rule_for_kappa_beats_the_most_probable_place(seed):
    log_p, labels, fold = ordered(seed)
    new, truth, _ = ordered(seed + 50, n=6000)
    found = decide(log_p, labels, fold, "kappa", Judge(standard_errors=1))
    assert found.rule == "ordinal"

    def kappa(scores):
        return cohen_kappa_score(truth, scores.argmax(1), weights="quadratic")

    mean = np.exp(new) @ np.arange(5)
    cost = -((mean[:, None] - np.arange(5)) ** 2)
    assert kappa(found.apply(new)) > max(kappa(new), kappa(cost)) + 0.01
    # slow reference: the best of many thresholds, symmetric as the scale is, where it is scored
    grid = np.linspace(0.3, 1.9, 33)
    pairs = [(a, b) for a, b in product(grid, grid) if a < b]
    places = [np.digitize(mean, [2 - b, 2 - a, 2 + a, 2 + b]) for a, b in pairs]
    reference = max(metrics.SCORES["kappa"](found, truth, 5) for found in places)
    assert kappa(found.apply(new)) > reference - 0.01


def test_without_stretch_it_is_the_expected_cost_by_hand():
    p = np.array([[0.45, 0.1, 0.45], [0.6, 0.3, 0.1]])
    log_p, places = np.log(p), np.arange(3)
    cost = np.array([[sum(row[k] * (j - k) ** 2 for k in places) for j in places] for row in p])
    params = {"beta": 1.0, "tau": 0.0, "log_prior": np.zeros(3), "places": places}
    rule = Decision("kappa", "ordinal", "", final=params | {"centre": 1.0, "stretch": 1.0})
    np.testing.assert_array_equal(rule.apply(log_p).argmax(1), cost.argmin(1))
    np.testing.assert_array_equal(cost.argmin(1), [1, 0])


def test_places_of_a_scale_of_its_own_are_respected():
    log_p, labels, _ = ordered(0)
    turned = np.array([3, 0, 4, 1, 2])  # the place of each label
    label_at = np.argsort(turned)
    mixed, theirs = log_p[:, turned], label_at[labels]
    alike = np.ones(len(log_p))
    one = fit_ordinal(np.exp(log_p), labels, "kappa", alike)
    two = fit_ordinal(np.exp(mixed), theirs, "kappa:3,0,4,1,2", alike)
    assert one["stretch"] == two["stretch"] and one["centre"] == pytest.approx(two["centre"])


def test_temperature_and_prior_that_were_planted_are_recovered():
    """A head that was balanced, and is over-confident by a factor of 3."""
    log_p, labels, fold = planted(3, counts=(3000, 1500, 300, 150))
    prior = np.log(np.bincount(labels))
    prior -= prior.mean()
    beta, tau = calibrated(
        3 * (log_p - prior), labels, prior.astype(np.float32), np.ones(len(labels))
    )
    assert beta == pytest.approx(1 / 3, rel=0.05) and tau == pytest.approx(1, abs=0.06)
    found = decide(3 * (log_p - prior), labels, fold, "log_loss", RULE)
    assert found.rule == "calibration" and found.gain.low > 0
    assert found.after < found.before
    assert found.after == pytest.approx(metrics.nll(log_p, labels), rel=0.01)
    p = softmax(found.apply(3 * (log_p - prior)).astype(float), axis=1)
    np.testing.assert_allclose(p.sum(1), 1)
    assert np.abs(p - np.exp(log_p)).max() < 0.05


@pytest.mark.parametrize("metric", ["macro_f1", "kappa", "log_loss"])
def test_where_there_is_nothing_to_find_nothing_is_kept(metric):
    kept = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        labels, fold = rng.integers(0, 4, 160), rng.integers(0, 4, 160)
        logits = rng.normal(size=(160, 4)).astype(np.float32) * (metric != "log_loss")
        if metric == "kappa":  # noise has one below 0 by chance, and deciding nothing has 0
            logits, labels, fold = ordered(seed, n=160, noise=0.2)
        kept += bool(decide(logits, labels, fold, metric, RULE).rule)
    assert kept < 5


def test_two_classes_absent_classes_and_one_fold():
    log_p, labels, fold = planted(4, counts=(300, 30))
    found = decide(log_p, labels, fold, "macro_f1", Judge(standard_errors=0))
    assert found.apply(log_p).shape == log_p.shape
    wide = np.concatenate([log_p, np.full((len(log_p), 2), -9.0)], axis=1)  # two without images
    found = decide(wide, labels, fold, "macro_f1", Judge(standard_errors=0))
    assert np.isfinite(found.after) and found.cross_fitted(wide, fold).shape == wide.shape
    one = decide(log_p, labels, np.zeros(len(labels), int), "macro_f1", RULE)
    assert not one.rule and "needs two folds" in one.says and one.apply(log_p) is log_p
    assert "leaves out 2 of 4 classes" in decide(wide, labels, fold, "macro_auc", RULE).says


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "top3", "map5"])
def test_metrics_of_rankings_and_those_that_steps_maximise_are_decided_as_they_are(metric):
    log_p, labels, fold = planted(5)
    assert rule_of(metric) is None
    assert decide(log_p, labels, fold, metric, RULE).apply(log_p) is log_p


def test_a_metric_of_yours_has_a_rule_where_it_judges_probabilities(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = [f"def f(labels, {takes}): return 0.0\n" for takes in ("predicted", "probabilities")]
    for name, part in zip(("a.py", "b.py"), parts, strict=True):
        (tmp_path / name).write_text(part)
    assert rule_of("python:a.py:f") is None and rule_of("python:b.py:f") == "calibration"


def test_the_config_may_ask_for_the_most_probable_class():
    log_p, labels, fold = planted(1)
    f1 = {"metric": "macro_f1"}
    assert decided(config(**f1), lambda: log_p, labels, fold).rule == "expected_utility"
    nothing = lambda: pytest.fail("logits are not needed, and may be gigabytes")  # noqa: E731
    assert not decided(config(**f1, ensemble={"decision": "plain"}), nothing, labels, fold).rule
    assert not decided(config(metric="accuracy"), nothing, labels, fold).rule


def test_for_a_target_prior_images_count_by_importance():
    """Under a balanced prior, macro F1 is all but best for the most probable class after the prior
    of the images was taken out; the rule for their own prior is far from that."""
    log_p, labels, fold = planted(1)
    balanced = np.full(3, 1 / 3)
    found = decide(log_p, labels, fold, "macro_f1", RULE, balanced)
    assert found.rule and found.gain.low > 0
    evenly = log_p - np.log(np.bincount(labels))
    weights = metrics.importance(labels, balanced)

    def score(scores):
        return metrics.SCORES["macro_f1"](scores.argmax(1), labels, 3, weights)

    assert found.before == pytest.approx(score(log_p))
    assert found.after == pytest.approx(score(found.cross_fitted(log_p, fold)))
    own = decide(log_p, labels, fold, "macro_f1", RULE)
    assert score(own.apply(log_p)) < score(evenly) - 0.03
    assert found.after == pytest.approx(score(evenly), abs=0.02)


def test_chunks_change_nothing_but_the_last_digits(monkeypatch):
    log_p, labels, fold = planted(1)
    whole = decide(log_p, labels, fold, "macro_f1", RULE)
    monkeypatch.setattr("src.metrics.outcomes.CHUNK", 400)
    parts = decide(log_p, labels, fold, "macro_f1", RULE)
    assert parts.after == pytest.approx(whole.after, abs=2e-3)
    np.testing.assert_allclose(parts.apply(log_p), whole.apply(log_p), atol=0.02)


def test_the_row_of_a_table_is_of_what_was_decided():
    log_p, labels, fold = planted(1)
    found = decide(log_p, labels, fold, "macro_f1", RULE)
    scores = found.cross_fitted(log_p, fold)
    bins = np.array(["many", "few", "few"])
    row, plain = found.summary(log_p, scores, labels, bins), metrics.summary(log_p, labels, bins)
    assert row["macro_f1"] == pytest.approx(found.after) and found.after > plain["macro_f1"]
    assert row["few"] > plain["few"] and row["accuracy"] == np.mean(scores.argmax(1) == labels)
    assert (row["ece"], row["nll"]) == (plain["ece"], plain["nll"])


def test_every_metric_with_a_rule_is_one_and_every_rule_is_used():
    assert set(OF_METRIC.values()) == set(RULES)
    assert set(OF_METRIC) <= {*PLAIN, *FAMILIES}


# ---- 04 and 06 ---------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return digits_runs(exp=4.0)


@pytest.mark.parametrize("metric", ["macro_f1", "kappa", "log_loss"])
def test_the_submission_is_what_the_stored_rule_decides(world, metric):
    keys = {"metric": metric, "judge": {"standard_errors": 0}}
    if metric == "log_loss":
        with pytest.raises(UserError, match="log_loss judges probabilities, but the submission"):
            ensemble([config(**keys, ensemble={"members": ["stage1"]})], ["exp"])
        write_dataset(world, sample=False)
        keys |= {"submission": {"format": "probabilities"}}
    asked = config(**keys, ensemble={"members": ["stage1"]})
    result = ensemble([asked], ["exp"])
    home = RUNS / DATASET / "submissions"
    facts = read_json(home / "exp.manifest.json")
    kept = facts["decision"]
    assert kept["rule"] == result.decision.rule != "" and kept["gain"] > 0
    assert facts["metrics"]["oof"][metric] == pytest.approx(kept["after"])
    assert kept["after"] == pytest.approx(result.oof.iloc[-1][metric])
    assert kept["before"] == pytest.approx(result.oof.iloc[0][metric])
    arrays = read_arrays(home / "exp.params.npz")
    params = unpack(kept["params"], arrays, home)
    saved = load_predictions(home / "exp.npz", 10)
    scores = Decision(metric, kept["rule"], "", final=params).apply(saved.logits)
    table = read_table(result.submission).set_index("Id").loc[saved.image_id]
    if metric == "log_loss":
        p = table[CLASS_IDS].to_numpy(float)
        np.testing.assert_allclose(p, np.exp(scores), rtol=1e-4, atol=1e-6)
    else:
        assert table["Category"].tolist() == [CLASS_IDS[i] for i in scores.argmax(1)]
    labels = dict(zip(world.test_ids, world.test_labels, strict=True))
    truth = np.array([labels[i] for i in saved.image_id])
    expected = metrics.SCORES[metric](metrics.OUTCOMES[metric](scores, truth), truth, 10)
    assert result.score[metric] == pytest.approx(expected)
    before = {p.name: p.read_bytes() for p in home.iterdir() if "manifest" not in p.name}
    ensemble([asked], ["exp"])
    assert before == {p.name: p.read_bytes() for p in home.iterdir() if "manifest" not in p.name}
    plain = config(**keys, ensemble={"members": ["stage1"], "decision": "plain"})
    with pytest.raises(UserError, match="decision: None there, 'plain' now"):
        ensemble([plain], ["exp"])
    result = ensemble([plain], ["exp"], overwrite=True)
    if metric != "log_loss":
        table = read_table(result.submission).set_index("Id")["Category"]
        assert table.loc[saved.image_id].tolist() == [CLASS_IDS[i] for i in saved.logits.argmax(1)]


def test_04_says_what_06_would_decide(world):
    heads = {"heads": ["stage1"], "steps": ["temperature"]}
    asked = config(metric="macro_f1", posthoc=heads, judge={"standard_errors": 0})
    posthoc(asked, "exp")
    home = RUNS / DATASET / "exp" / "posthoc"
    found = read_json(home / "posthoc.json")["decision"]
    oof = load_predictions(home / "oof.npz", 10)
    rule = decide(oof.logits, oof.label, oof.fold, "macro_f1", asked.judge)
    assert found["rule"] == rule.rule and found["gain"] == pytest.approx(rule.gain.value)
    assert found["after"] == pytest.approx(rule.after)  # the interval goes by the order of images
    assert found["before"] == pytest.approx(metrics.macro_f1(oof.logits, oof.label))
