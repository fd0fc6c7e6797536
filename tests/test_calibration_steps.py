"""Vector scaling and a temperature per bin: planted truths, and what little data can do to them."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from src.fusion import STEPS
from src.fusion.step import State
from src.metrics import nll
from src.posthoc.crossfit import no_steps, try_step
from src.posthoc.inputs import Start
from tests.fabricate import config, step

APPLY = {name: STEPS[name].apply for name in ("vector_scaling", "bin_temperature")}


def drawn(rng, true: np.ndarray) -> np.ndarray:
    """Labels of images whose log-probabilities are `true`."""
    return (softmax(true, axis=1).cumsum(1) > rng.random((len(true), 1))).argmax(1)


def start_of(z: np.ndarray, y: np.ndarray, bins=None, folds=3) -> Start:
    fold, counts = np.arange(len(y)) % folds, np.bincount(y, minlength=z.shape[1])
    states = {
        k: State(z[fold == k].astype(np.float32), None, "stage1", {}, counts, bins=bins)
        for k in range(folds)
    }
    return Start("stage1", states, {k: y[fold == k] for k in range(folds)})


def fitted(name: str, start: Start, **keys):
    states, labels = list(start.states.values()), list(start.labels.values())
    return step(name, keys).fit(states, labels)


def tried(name: str, start: Start):
    return try_step(step(name), start, no_steps(start), config())


# ---- vector scaling ------------------------------------------------------------------------------


def test_a_planted_bias_and_scale_of_each_class_are_recovered():
    rng = np.random.default_rng(0)
    true = 1.5 * rng.normal(size=(6000, 4))
    y, w, b = drawn(rng, true), np.array([1, 2, 0.7, 1.3]), np.array([0.5, -1, 0, 0.5])
    start = start_of((true - b) / w, y)
    found = fitted("vector_scaling", start, shrinkage=0.1, iterations=200)
    np.testing.assert_allclose(found["w"], w, atol=0.15)
    bias = found["b"] - found["b"].mean()
    np.testing.assert_allclose(bias, b - b.mean(), atol=0.15)
    trial = tried("vector_scaling", start)
    assert trial.kept and trial.scored_by == "nll" and trial.gain.low > 0.05


def test_it_is_the_minimum_of_its_formula():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(60, 3)).astype(np.float32)
    y = drawn(rng, 2 * z + [1, 0, -1])
    start = start_of(z, y)
    temperature = step("temperature").fit(list(start.states.values()), list(start.labels.values()))
    beta, m = 1 / temperature["T"], float(np.square(z / temperature["T"]).mean())

    def loss(x):
        v, b = x[:3], x[3:]
        logits = beta * (1 + v) * z + b
        own = -log_softmax(logits, axis=1)[np.arange(60), y].mean()
        return own + 10 / (2 * 60) * (m * v @ v + b @ b)

    best = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-7}).x
    found = fitted("vector_scaling", start, iterations=200)
    np.testing.assert_allclose(found["w"], beta * (1 + best[:3]), atol=2e-3)
    np.testing.assert_allclose(found["b"], best[3:], atol=2e-3)


def test_a_class_with_two_images_cannot_run_away_and_one_without_keeps_its_logits():
    rng = np.random.default_rng(2)
    true = rng.normal(size=(300, 5)) + [2, 2, 2, -4, -4]
    y = np.minimum(drawn(rng, true), 2)
    y[:2] = 3  # two images; none of class 4
    start = start_of(true, y)
    found, free = (fitted("vector_scaling", start, shrinkage=s) for s in (10.0, 1e-3))
    temperature = step("temperature").fit(list(start.states.values()), list(start.labels.values()))
    assert abs(found["b"][3]) < 0.5 < abs(free["b"][3])
    assert found["b"][4] == 0
    assert found["w"] * temperature["T"] == pytest.approx(1, abs=0.5)
    one = fitted("vector_scaling", start, shrinkage=1e9)
    np.testing.assert_allclose(one["w"], 1 / temperature["T"], rtol=1e-3)


# ---- a temperature per bin -----------------------------------------------------------------------


def by_bin(rng, n=4000):
    """What is predicted as one of classes 2 and 3 is four times too sure, the rest is right."""
    true = 2 * rng.normal(size=(n, 4))
    rare = true.argmax(1) >= 2
    return np.where(rare[:, None], 4.0, 1.0) * true, drawn(rng, true), np.array([0, 0, 1, 1])


def test_planted_temperatures_are_recovered_and_no_prediction_changes():
    z, y, bins = by_bin(np.random.default_rng(3))
    start = start_of(z, y, bins)
    found = fitted("bin_temperature", start)
    np.testing.assert_allclose(found["T"], [1, 4], rtol=0.1)
    state = start.states[0]
    after = APPLY["bin_temperature"](state, found)
    assert np.array_equal(after.argmax(1), state.logits.argmax(1))
    common = step("temperature").fit(list(start.states.values()), list(start.labels.values()))["T"]
    assert nll(after, start.labels[0]) < nll(state.logits / common, start.labels[0]) - 0.01
    assert tried("bin_temperature", start).kept


def test_a_bin_without_predictions_has_the_temperature_of_all():
    rng = np.random.default_rng(4)
    true = rng.normal(size=(500, 3)) - [0, 0, 50]
    start = start_of(3 * true, drawn(rng, true), np.array([0, 0, 1]))
    found = fitted("bin_temperature", start)
    common = step("temperature").fit(list(start.states.values()), list(start.labels.values()))["T"]
    assert found["T"][1] == pytest.approx(common, rel=1e-2)
    assert found["T"][0] == pytest.approx(3, rel=0.15)


def test_it_needs_bins_that_tell_something_apart():
    refuses = step("bin_temperature").refuses
    state = State(np.zeros((2, 3)), None, "stage1")
    assert "needs the classes' bins" in refuses(state)
    one = State(np.zeros((2, 3)), None, "stage1", bins=np.zeros(3, int))
    assert "in one bin; use temperature" in refuses(one)


# ---- nothing to find -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vector_scaling", "bin_temperature", "temperature"])
def test_calibrated_logits_are_left_alone(name):
    """50 draws of labels that are what the logits say; two classes, one of three folds of them."""
    kept = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        true = 1.5 * rng.normal(size=(240, 3))
        kept += tried(name, start_of(true, drawn(rng, true), np.array([0, 0, 1]))).kept
    assert kept < 5


@pytest.mark.parametrize("name", ["vector_scaling", "bin_temperature"])
def test_two_classes_and_two_folds(name):
    rng = np.random.default_rng(5)
    true = rng.normal(size=(200, 2))
    trial = tried(name, start_of(5 * true, drawn(rng, true), np.array([0, 1]), folds=2))
    assert trial.kept and trial.gain.low > 0
