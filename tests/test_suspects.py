"""Wrong labels and outliers are found where they were planted; intervals are what they say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from benchmarks.wrong_labels import planted
from src.metrics import outcomes_of, standard_errors, wilson
from src.report.stages import Scored
from src.report.suspects import FAR, PER_CLASS, outliers, wrong_labels


def stage_of(logits: np.ndarray, label: np.ndarray, distance=None) -> Scored:
    found = outcomes_of(logits, label)
    ids = np.array([f"{i:05d}" for i in range(len(label))])
    return Scored(ids, label, found, {}, found.calibration(label), {}, distance)


def test_planted_wrong_labels_are_the_first_that_are_shown():
    world = planted(seed=0)
    found = wrong_labels(stage_of(world.logits, world.given), 10)
    assert world.wrong[found["row"][:50]].mean() >= 0.8 > 4 * world.wrong.mean()
    first = found[world.wrong[found["row"]]].head(50)
    assert (first["suggested"] == world.true[first["row"]]).mean() > 0.9


def test_a_suspect_is_what_the_formula_says_and_rare_classes_are_not_all_suspect():
    """Class 2 gets .4 even where it is right; .5 for class 0 is less than its usual .9."""
    p = np.array([[0.9, 0.05, 0.05]] * 4 + [[0.5, 0.1, 0.4]] * 2 + [[0.3, 0.3, 0.4]] * 2)
    p = np.concatenate([p, [[0.95, 0.03, 0.02]]])
    label = np.array([0, 0, 0, 0, 2, 2, 2, 2, 2])
    found = wrong_labels(stage_of(np.log(p), label), 3)
    t0, t2 = 0.9, np.mean([0.4, 0.4, 0.4, 0.4, 0.02])
    assert found["row"].tolist() == [8] and found["suggested"].tolist() == [0]
    assert found["score"][0] == pytest.approx(np.log(0.95 / t0) - np.log(0.02 / t2))


def test_classes_without_images_and_perfect_models_have_no_suspects():
    logits = np.array([[3.0, 0, 0], [0, 3.0, 0]])
    assert wrong_labels(stage_of(logits, np.array([0, 1])), 3).empty


def test_planted_outliers_are_first_whatever_the_fold_and_few_of_a_class():
    rng = np.random.default_rng(0)
    label, fold = np.repeat(np.arange(20), 30), np.tile([0, 1, 2], 200)
    label[-1] = 20  # a class with one image
    distance = 0.2 + 0.03 * rng.random(600) + 0.02 * label / 20 + 0.1 * fold
    planted_at = [5, 100, 301, 450]
    distance[planted_at] += 0.3
    stage = stage_of(rng.normal(size=(600, 21)), label, distance)
    found = outliers(stage, fold, 21)
    assert set(found["row"][:4]) == set(planted_at) and (found["score"] > FAR).all()
    many = distance + 0.4 * ((label == 3) & (rng.random(600) < 0.4))
    found = outliers(replace(stage, distance=many), fold, 21)
    assert found["given"].value_counts()[3] == PER_CLASS
    assert outliers(replace(stage, distance=None), fold, 21).empty


def test_wilsons_interval_is_scipys():
    for right, total in ((0, 3), (3, 3), (7, 20), (99, 100)):
        told = binomtest(right, total).proportion_ci(0.95, method="wilson")
        assert np.allclose(wilson(right, total), told, atol=1e-4)
    assert [float(end) for end in wilson(0, 0)] == pytest.approx([0, 1], abs=1e-6)


def test_standard_errors_are_those_of_repeated_experiments():
    """200 new samples of the same world spread as the bootstrap of one of them says."""
    rng, recall = np.random.default_rng(1), np.array([0.9, 0.6, 0.4])
    bins, label = np.array(["many", "medium", "few"]), np.repeat([0, 1, 2], [200, 60, 40])

    def sample():
        right = rng.random(300) < recall[label]
        guess = np.where(right, label, (label + 1) % 3)
        return outcomes_of(4 * np.eye(3)[guess] + rng.normal(size=(300, 3)) / 9, label)

    scores = pd.DataFrame([sample().summary(label, bins) for _ in range(200)])
    told = pd.DataFrame([standard_errors(sample(), label, bins, "top5") for _ in range(12)]).mean()
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "nll", "many", "medium", "few"):
        assert told[name] == pytest.approx(scores[name].std(), rel=0.2), name
    assert told["top5"] == 0
