"""The expected score: each part against planted truth, and all of it on small competitions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, log_softmax

from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, write_json
from src.ensemble import expected
from src.ensemble.ensemble import ensemble
from src.ensemble.members import Member
from src.forecast import Evidence, Forecast, Views, forecast, read_forecast
from src.forecast.curve import OVER, PRIOR, fit_curve
from src.forecast.expect import Model, interval, score_at
from src.forecast.measure import TERMS, draw, image_shares, measure
from src.report.context import gather
from src.report.page import write_report
from tests.fabricate import (
    config,
    digits_runs,
)

K = 5


def world(rng, images, centers, noise=1.0):
    """Labels and log-probabilities of images that a linear model knows as well as one can."""
    labels = np.repeat(np.arange(len(images)), images)
    x = centers[labels] + noise * rng.normal(size=(len(labels), centers.shape[1]))
    z = -((x[:, None] - centers) ** 2).sum(2) / (2 * noise**2)
    return labels, log_softmax(z, axis=1)


def evidence(rng, images=(120,) * K, test=(60,) * K, metric="accuracy", **more) -> Evidence:
    """Networks that have seen all there is to see: out-of-fold and test images are alike."""
    centers = rng.normal(size=(len(images), 4)) * 1.2
    labels, oof = world(rng, images, centers)
    _, found = world(rng, test, centers)
    counts = np.array(images)
    facts = {"oof": oof, "labels": labels, "seen": counts[labels], "counts": counts}
    facts |= {"test": found, "networks": 1.0, "experiments": 1.0, "metric": metric}
    return Evidence(**facts | more)


# ---- learning curve ------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", [0.2, 0.8])
def test_a_planted_learning_curve_is_recovered(planted):
    rng = np.random.default_rng(0)
    counts = np.geomspace(1000, 10, 40).astype(int)
    labels = np.repeat(np.arange(40), np.maximum(counts, 60))
    before = -2 + planted * np.log(counts * 0.8)
    right = rng.random(len(labels)) < expit(before)[labels]
    curve = fit_curve(right, labels, (counts * 0.8)[labels])
    assert curve.slope == pytest.approx(planted, abs=0.15)
    share, step = np.full(40, 1 / 40), np.full(40, np.log(1 / 0.8))
    after = 1 - expit(before + planted * step)
    true = np.log(after.mean() / (1 - expit(before)).mean())
    assert curve.more_images(share, step) == pytest.approx(true, abs=0.06)
    assert curve.more_images(share, 0 * step) == 0


def test_without_differences_in_size_the_slope_is_the_priors():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(K), 30)
    right = rng.random(len(labels)) < 0.7
    assert fit_curve(right, labels, np.full(len(labels), 24)).slope == pytest.approx(PRIOR)
    assert fit_curve(right[:30], labels[:30], np.full(30, 24)).slope == pytest.approx(PRIOR)


def test_recalls_of_few_images_are_nearer_the_truth_than_the_images_alone():
    """Two images per class, recalls planted on a line of log counts with OVER between classes."""
    rng = np.random.default_rng(0)
    counts = np.geomspace(500, 2, 300).astype(int)
    true = expit(-1.5 + 0.5 * np.log(counts) + OVER * rng.normal(size=300))
    labels = np.repeat(np.arange(300), 2)
    right = rng.random(600) < true[labels]
    curve = fit_curve(right, labels, counts[labels])
    assert np.abs(expit(curve.logit) - true).mean() < 0.6 * np.abs(curve.raw - true).mean()
    z = (curve.logit - np.log(true / (1 - true))) / np.sqrt(curve.variance)
    assert 0.7 < z.std() < 1.3  # as uncertain as it says
    share = np.full(300, 1 / 300)
    assert curve.borrowed(share) == pytest.approx(0, abs=0.1)


def test_a_class_that_two_images_get_right_is_in_doubt():
    labels, counts = np.repeat(np.arange(4), 2), np.full(4, 2)
    sure = fit_curve(np.ones(8), labels, counts[labels])
    share = np.full(4, 0.25)
    assert sure.doubt(share) > 0.02  # no draw of these images is ever wrong
    many = np.repeat(np.arange(4), 500)
    known = fit_curve(np.arange(2000) % 3 > 0, many, np.full(2000, 500))
    assert known.doubt(share) < 1e-4


# ---- sampling ------------------------------------------------------------------------------------


def test_the_sampling_interval_against_the_binomial_formula():
    """Of a test set of M and N out-of-fold images: variance p (1 − p) (1/M + 1/N)."""
    rng = np.random.default_rng(0)
    labels, size, p = np.zeros(400, int), 250, 0.8
    right = np.arange(400) < 400 * p
    share = image_shares(labels, np.ones(1), np.array([400]))
    scores = [(right @ draw(labels, share, size, rng)) / size for _ in range(3000)]
    assert np.mean(scores) == pytest.approx(p, abs=0.003)
    assert np.std(scores) == pytest.approx(np.sqrt(p * (1 - p) * (1 / size + 1 / 400)), rel=0.06)


def test_draws_have_the_classes_of_the_test_set():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), [90, 9, 1])
    target = np.array([0.2, 0.5, 0.3])
    share = image_shares(labels, target, np.array([90, 9, 1]))
    assert np.bincount(labels, share) == pytest.approx(target)
    drawn = np.mean([draw(labels, share, 200, rng) for _ in range(300)], axis=0)
    assert np.bincount(labels, drawn) / 200 == pytest.approx(target, abs=0.01)


def test_what_is_known_of_no_class_comes_from_the_rarest():
    labels = np.array([0, 0, 0, 1, 1, 2])
    counts = np.array([4, 3, 2, 1, 0])  # of label 3 the one image is always trained on
    share = image_shares(labels, np.full(5, 0.2), counts)
    assert np.bincount(labels, share) == pytest.approx([0.2, 0.2, 0.6])


# ---- all of it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric", ["accuracy", "macro_f1", "top2", "map3", "log_loss", "macro_auc", "kappa"]
)
def test_every_metric_has_a_forecast_around_what_is_measured(metric):
    found = forecast(evidence(np.random.default_rng(1), metric=metric))
    assert found.low < found.value < found.high
    assert found.oof + sum(found.steps.values()) == pytest.approx(found.value, abs=2e-3)
    low, high = (0, 10) if metric == "log_loss" else (0, 1)
    assert low <= found.low and found.high <= high


def test_an_own_metric_has_a_forecast(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "def errors(labels, predicted):\n    return (labels != predicted).sum() / len(labels)\n\n"
        "errors.greater_is_better = False\n"
    )
    metric = f"python:{file}:errors"
    mine = measure(evidence(np.random.default_rng(1), metric=metric))
    known = measure(evidence(np.random.default_rng(1)))
    assert mine.oof == pytest.approx(1 - known.oof) and mine.best == 0
    assert mine.center == pytest.approx(known.center, abs=0.02)


def test_a_class_prior_that_is_given_is_used():
    rng = np.random.default_rng(2)
    e = evidence(rng, images=(300, 20, 20, 20, 20))
    rare = replace(e, target=np.array([0.0, 0.25, 0.25, 0.25, 0.25]))
    hits = (e.oof.argmax(1) == e.labels)[e.labels > 0]
    found = measure(rare)
    assert found.reweighted == pytest.approx(hits.mean(), abs=0.03) and found.moved == 0


def test_a_planted_prior_of_the_test_images_is_found():
    """Classes that are rare out of fold and often wrong are half of the test set."""
    rng = np.random.default_rng(2)
    e = evidence(rng, images=(400, 400, 400, 60, 60), test=(40, 40, 40, 150, 150))
    known = measure(replace(e, target=np.array([40, 40, 40, 150, 150]) / 420))
    found = measure(e)
    assert abs(found.oof - known.reweighted) > 0.03
    assert found.reweighted == pytest.approx(known.reweighted, abs=0.015)


def test_a_class_prior_that_is_estimated_widens_the_interval():
    e = evidence(
        np.random.default_rng(2), images=(400, 400, 400, 60, 60), test=(20, 20, 20, 200, 200)
    )
    found = measure(e)
    assert abs(found.moved) > 0.05
    reach = [Model(np.zeros(len(TERMS)), 0.1, 0.0, d, 1.645).spread(found) for d in (0.0, 1.0)]
    assert reach[1] == pytest.approx(np.hypot(reach[0], found.moved))


@pytest.fixture
def planted(monkeypatch):
    """Effects that do not depend on what the benchmark found."""
    model = Model(np.array([-0.3, 0.7, 0.7, 0.7]), 0.1, 0.3, 0.0, 1.645)
    monkeypatch.setattr("src.forecast.expect.calibrated", lambda of: (model, (0.9, 200)))


def test_test_images_that_the_networks_are_unsure_of_lower_the_forecast(planted):
    e = evidence(np.random.default_rng(3), images=(200,) * K)
    unsure = replace(e, test=log_softmax(0.3 * e.test, axis=1))
    assert measure(unsure).terms[TERMS.index("confidence")] > 0.3
    assert forecast(unsure).value < forecast(e).value - 0.02
    before, after = forecast(e), forecast(unsure)
    assert after.high - after.low > before.high - before.low


def test_more_networks_are_expected_to_score_better(planted):
    e = evidence(np.random.default_rng(4), images=(200,) * K)
    scores = [forecast(replace(e, networks=k)).value for k in (1, 3, 10)]
    assert scores == sorted(scores) and scores[2] > scores[0] + 0.005
    many = forecast(replace(e, networks=10, experiments=5)).value
    assert scores[0] < many < scores[2]  # what averaging brings, five experiments have already


def test_what_views_are_worth_is_added_with_its_doubt():
    e = evidence(np.random.default_rng(5))
    plain, seen = measure(e), measure(replace(e, views=Views(0.8, 0.84, 0.02)))
    assert seen.views == pytest.approx(np.log(0.16 / 0.2), abs=0.01)
    assert seen.noise == pytest.approx(np.hypot(plain.noise, 0.02 / 0.16), rel=0.02)


def test_nothing_wrong_out_of_fold_is_no_certainty():
    e = evidence(np.random.default_rng(6))
    sure = replace(e, oof=np.log(0.98 * np.eye(K)[e.labels] + 0.004))
    found = forecast(sure)
    assert found.oof == 1 and found.low < 0.999 and np.isfinite(found.value)


def test_the_same_evidence_gives_the_same_forecast_and_survives_the_manifest():
    e = evidence(np.random.default_rng(7))
    found = forecast(e)
    assert found == forecast(e) == read_forecast(found.facts())
    assert [line.count("\n") for line in found.lines()] == [0, 0, 0]
    assert found.lines()[0].endswith(f"{found.value:.3f}")


def competition(rng) -> tuple[Evidence, float]:
    """Test images like those out of fold: all that is uncertain is sampling."""
    images = rng.integers(15, 80, K)
    centers = rng.normal(size=(K, 4)) * 1.2
    labels, oof = world(rng, images, centers)
    truth, test = world(rng, rng.integers(20, 60, K), centers)
    e = Evidence(oof, labels, images[labels], images, test, 1.0, 1.0, "accuracy")
    return e, float((test.argmax(1) == truth).mean())


def test_coverage_where_nothing_but_sampling_is_uncertain():
    """With neither terms nor widening 90 % is promised: of 60 about 54, within four deviations."""
    rng = np.random.default_rng(0)
    model, inside, z = Model(np.zeros(len(TERMS)), 0.0, 0.0, 0.0, 1.645), 0, []
    for _ in range(60):
        e, truth = competition(rng)
        found = measure(e)
        low, high = interval(model, found, 1)
        inside += low <= truth <= high
        z.append((np.log(1 - truth + found.epsilon) - found.center) / found.noise)
    assert 45 <= inside <= 59
    assert abs(np.mean(z)) < 0.5 and 0.7 < np.std(z) < 1.4


def test_scores_are_on_the_right_side_of_perfect():
    e = evidence(np.random.default_rng(8), metric="log_loss")
    found = measure(e)
    assert score_at(found.center, found, -1) == pytest.approx(found.reweighted, rel=0.05)
    low, high = interval(Model(np.zeros(len(TERMS)), 0.2, 0.0, 0.0, 1.645), found, -1)
    assert 0 <= low < found.oof < high


def test_told_is_how_it_was_checked():
    found = Forecast("accuracy", 0.8, 0.7, 0.9, 0.75, {"views": 0.05}, (0.9, 205))
    value, reach, why = found.lines()
    assert "0.800" in value and "0.700 to 0.900" in reach and "90 % of 205" in reach
    assert "0.750" in why and "views +0.050" in why


# ---- 06 ------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A submission of three folds' cRT, whose solution is known."""
    monkeypatch.chdir(tmp_path)
    digits_runs(one=0.0, two=0.0)
    return ensemble([ONE], ["one"])


ONE = config(ensemble={"members": ["crt"]})


def test_the_manifest_holds_what_was_expected_and_what_it_became(made):
    facts = read_json(made.submission.with_name("one.manifest.json"))
    told = read_forecast(facts["expected"])
    assert told == made.expected and told.metric == "balanced_accuracy"
    assert told.oof == pytest.approx(facts["metrics"]["oof"]["balanced_accuracy"])
    assert "balanced_accuracy" in facts["metrics"]["solution"]


def test_the_solution_changes_no_forecast(made):
    Path("data/raw/digits/solution.csv").unlink()
    assert ensemble([ONE], ["one"], overwrite=True).expected == made.expected


def test_what_images_networks_saw_and_how_many_they_are(made, monkeypatch):
    seen = []
    monkeypatch.setattr(expected, "forecast", lambda e, seed: seen.append(e) or made.expected)
    ensemble([ONE], ["one"], overwrite=True)
    ensemble([ONE, ONE], ["one", "two"])
    one, two = seen
    dataset, fold = load_dataset("digits"), load_dataset("digits").images["fold"]
    for k in dataset.folds:
        counts = dataset.counts(dataset.training(k))
        held = (fold[fold >= 0] == k).to_numpy()
        assert (one.seen[held] == counts[one.labels[held]]).all()
    assert one.counts.sum() == len(dataset.images) and one.networks == 3
    assert one.experiments == pytest.approx(1) and 1 <= two.experiments <= 2


def test_views_that_05_measured_are_used_for_their_metric_only(made):
    gain = {"metric": "accuracy", "one_view": 0.7, "all_views": 0.8, "gain_low": 0, "gain_high": 1}
    a, b = (Member(n, *np.zeros((2, 1, 2)), {}, predicted={"views_gain": gain}) for n in "ab")
    shares = np.array([0.5, 0.5])
    found = expected.views_of([a, b], shares, "accuracy")
    assert found == pytest.approx(Views(0.7, 0.8, 1 / 3.92))
    assert expected.views_of([a, b], shares, "log_loss") is None
    assert expected.views_of([a, replace(b, predicted={})], shares, "accuracy") is None


def test_the_report_shows_it_and_does_without(made):
    def page() -> str:
        return write_report(gather("digits", ["one"], [ONE])).read_text()

    assert "xpected leaderboard score, balanced_accuracy" in page()
    assert "images of the solution: " in page()
    path = made.submission.with_name("one.manifest.json")
    old = read_json(path)
    del old["expected"]  # as earlier versions wrote it
    write_json(path, old)
    assert "xpected leaderboard score" not in page()
