"""Weights and biases of each class: the fit against its formula, and what was planted."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize
from scipy.special import log_softmax

from src.fusion import STEPS, classwise
from src.fusion.classwise import fit_classwise, identity, shortlist
from src.fusion.store import load_recipe, save_recipe
from src.posthoc.crossfit import no_steps, try_step
from src.posthoc.inputs import Start
from tests.fabricate import config, step
from tests.test_fuse_heads import beside


def drawn(logits: np.ndarray, rng) -> np.ndarray:
    """Labels from the probabilities of logits [n, K]."""
    p = np.exp(log_softmax(logits, axis=1))
    return (p.cumsum(1) > rng.random((len(p), 1))).argmax(1)


def two_heads(n=300, k=5, seed=0):
    rng = np.random.default_rng(seed)
    z, other = (2 * rng.normal(size=(2, n, k))).astype(np.float32)
    return z, other, drawn(z + 0.5 * other, rng)


def slow_objective(theta, terms, labels, strength, balanced=True, s=1.0) -> float:
    """J / N of the module's docstring, image by image."""
    theta = theta.reshape(len(terms) + 1, -1)
    k = theta.shape[1]
    counts = np.bincount(labels, minlength=k)
    v = np.ones(k)
    if balanced:
        v = len(labels) / (counts > 0).sum() / np.maximum(counts, 1)
    total = 0.0
    for i, y in enumerate(labels):
        z = sum(theta[j] * x[i] for j, x in enumerate(terms)) + theta[-1]
        total -= v[y] * log_softmax(s * z)[y]
    for j, x in enumerate(terms):
        size = np.mean([row.var() for row in x])
        total += strength * s**2 / 2 * size * (v * (theta[j] - (j == 0)) ** 2).sum()
    total += strength * s**2 / 2 * (v * theta[-1] ** 2).sum()
    return total / len(labels)


@pytest.mark.parametrize("balanced", [True, False])
def test_the_fit_is_the_minimum_of_its_formula(balanced):
    z, other, y = two_heads(30, 3)
    terms = [z, other]
    found, strength = fit_classwise(
        [shortlist(terms, z, y)], 3, (2.0,), balanced=balanced, bias=True
    )

    def objective(flat):  # with s behind
        x = [term.astype(float) for term in terms]
        return slow_objective(flat[:-1], x, y, 2.0, balanced, flat[-1])

    best = minimize(objective, np.append(identity(2, 3), 1), method="BFGS").x
    again = minimize(lambda s: objective(np.append(found, s)), 1.0).x  # s is not handed out
    assert strength == 2.0
    assert objective(np.append(found, again)) < objective(best) + 1e-5
    np.testing.assert_allclose(found.ravel(), best[:-1], atol=0.02)


def test_the_gradient_is_that_of_the_loss(monkeypatch):
    monkeypatch.setattr(classwise, "SHORT", 4)  # of 7 classes
    monkeypatch.setattr("src.metrics.outcomes.CHUNK", 80)  # several parts
    z, other, y = two_heads(40, 7)
    v = np.linspace(0.5, 2, 7)
    found = shortlist([z, other], z, y)
    theta = identity(2, 7) + np.random.default_rng(0).normal(0, 0.2, (3, 7))
    value, gradient = classwise._loss(found, theta, v)
    numeric = approx_fprime(
        theta.ravel(), lambda t: classwise._loss(found, t.reshape(3, 7), v)[0], 1e-3
    )
    np.testing.assert_allclose(gradient.ravel(), numeric, atol=0.05, rtol=0.05)


def test_few_classes_and_some_of_the_others_say_what_all_say(monkeypatch):
    """At any sharpness of the logits, and with the label where it is not among the highest."""
    z, other, _ = two_heads(4000, 40)
    y = np.random.default_rng(1).integers(40, size=4000)
    v = np.linspace(0.5, 2, 40)
    monkeypatch.setattr(classwise, "SHORT", 10)
    monkeypatch.setattr(classwise, "SAMPLE", 8)
    found = shortlist([z, other], z, y)
    assert found.classes.shape == (4000, 18) and (found.labels == y).all()
    for sharpness in (0.2, 1.0, 3.0):
        value = classwise._loss(found, sharpness * identity(2, 40), v)[0]
        log_p = log_softmax(sharpness * z, axis=1)
        expected = -(v[y] * np.take_along_axis(log_p, y[:, None], 1)[:, 0]).sum()
        assert value == pytest.approx(expected, rel=0.01)


def test_a_shortlist_gives_nearly_what_all_classes_give(monkeypatch):
    rng = np.random.default_rng(0)
    z = (3 * rng.normal(size=(1500, 30))).astype(np.float32)
    bias = np.linspace(-1, 1, 30)
    y = drawn(z + bias, rng)
    keys = {"balanced": False, "bias": True}
    whole = fit_classwise([shortlist([z], z, y)], 30, (5.0,), **keys)[0]
    monkeypatch.setattr(classwise, "SHORT", 8)
    short = fit_classwise([shortlist([z], z, y)], 30, (5.0,), **keys)[0]
    assert not np.array_equal(whole, short)
    centred = whole[-1] - whole[-1].mean(), short[-1] - short[-1].mean()
    assert np.corrcoef(*centred)[0, 1] > 0.98
    assert np.abs(centred[0] - centred[1]).max() < 0.25


# ---- planted truths ----------------------------------------------------------------------------


def biased(seed=0, folds=4, few=2) -> tuple[Start, np.ndarray]:
    """Heads that are right but for a bias per class; the last class has `few` images in all, and
    the other head knows nothing."""
    rng = np.random.default_rng(seed)
    bias = np.array([1.5, -1.0, 0.5, 0.0, -1.0, 0.0])
    truth = 1.5 * rng.normal(size=(3000, 6))
    y = drawn(truth, rng)
    rare = np.flatnonzero(y == 5)
    rows = np.setdiff1d(np.arange(len(y)), rare[few:])
    fold = np.arange(len(rows)) % folds
    fold[np.isin(rows, rare)] = np.arange(min(few, len(rare))) % folds
    states, labels = {}, {}
    for k in range(folds):
        mine = rows[fold == k]
        other = rng.normal(size=(len(mine), 6))
        states[k], labels[k] = beside(truth[mine] + bias, other), y[mine]
    return Start("stage1", states, labels), bias


def test_llw_takes_out_the_bias_that_was_planted_and_leaves_a_class_of_two_images():
    start, bias = biased()
    keys = {"balanced": False, "shrinkage": [3.0, 30.0, 300.0], "scaler": "none"}
    trial = try_step(step("llw", keys), start, no_steps(start), config(metric="accuracy"))
    found = trial.choices[None]
    known = slice(0, 5)
    b = found["b"][known] - found["b"][known].mean()
    np.testing.assert_allclose(b, -(bias[known] - bias[known].mean()), atol=0.25)
    w1 = found["w1"][known]  # up to a temperature
    np.testing.assert_allclose(w1 / w1.mean(), 1, atol=0.1)
    np.testing.assert_allclose(found["w2"], 0, atol=0.15)  # the other head knows nothing
    assert trial.kept and trial.gain.low > 0.01


@pytest.mark.parametrize("few", [0, 2])
def test_a_class_of_two_images_or_none_stays_near_the_identity(few):
    """Weights make classes count equally, and with them two images could do anything."""
    start, _ = biased(few=few)
    fold = list(start.states)
    for strength, bound in ((10.0, 0.35), (100.0, 0.06)):
        keys = {"shrinkage": [strength], "scaler": "none"}
        found = step("llw", keys).fit([start.states[k] for k in fold], list(start.labels.values()))
        if found["shrinkage"] is None:
            continue
        move = [abs(found["w1"][5] - 1), abs(found["w2"][5]), abs(found["b"][5])]
        assert max(move) < bound and np.abs(found["b"][:5]).max() > 0.5
    assert found["shrinkage"] is not None


def test_llw_believes_each_head_where_it_is_right():
    """One head knows the first three classes from each other, the other the last three."""
    rng = np.random.default_rng(0)
    states, labels, k = {}, {}, 6
    for fold in range(4):
        y = rng.integers(k, size=500)
        z, other = rng.normal(size=(2, 500, k)).astype(np.float32)
        z[np.arange(500), y] += np.where(y < 3, 4, 0)
        other[np.arange(500), y] += np.where(y < 3, 0, 4)
        states[fold], labels[fold] = beside(z, other), y
    start = Start("stage1", states, labels)
    trial = try_step(step("llw", {"scaler": "none"}), start, no_steps(start), config())
    w1, w2 = trial.choices[None]["w1"], trial.choices[None]["w2"]
    assert trial.kept and trial.gain.value > 0.25
    assert w2[3:].min() > 2 * max(w2[:3].max(), 0)
    assert (w1[:3] > 2 * w1[3:].max()).all()


def test_class_scales_find_what_was_planted():
    rng = np.random.default_rng(0)
    scale = np.array([2.0, 1.0, 0.5, 1.0])
    states, labels = {}, {}
    for fold in range(3):
        truth = 2 * rng.normal(size=(1500, 4))
        states[fold], labels[fold] = beside(truth / scale, truth), drawn(truth, rng)
    start = Start("stage1", states, labels)
    trial = try_step(step("class_scales"), start, no_steps(start), config())
    found = trial.choices[None]["scale"]  # up to a temperature
    np.testing.assert_allclose(found / found[1], scale, rtol=0.12)
    assert trial.kept


@pytest.mark.parametrize("name", ["llw", "class_scales"])
def test_on_pure_noise_the_identity_is_kept(name):
    """A head that is right about its own uncertainty, but for its temperature, beside one that
    knows nothing."""
    kept, still = 0, 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        states, labels = {}, {}
        for fold in range(3):
            z, other = 2 * rng.normal(size=(2, 100, 5))
            states[fold], labels[fold] = beside(3 * z, other), drawn(z, rng)
        start = Start("stage1", states, labels)
        trial = try_step(step(name), start, no_steps(start), config())
        kept += trial.kept
        still += trial.choices[None]["shrinkage"] is None
    assert kept <= 1 and still >= 4


def test_of_one_fold_the_largest_shrinkage_is_taken_and_two_classes_suffice():
    z, other, y = two_heads(50, 2)
    found = step("llw").fit([beside(z, other)], [y])
    assert found["shrinkage"] == 100.0 and found["w1"].shape == (2,)
    assert np.isfinite(found["b"]).all()


def test_what_is_fitted_is_stored_and_applies_to_identical_bytes(tmp_path):
    z, other, y = two_heads()
    state = beside(z, other)
    params = step("llw", {"shrinkage": [1.0]}).fit([state], [y])
    save_recipe(tmp_path, {"head": "stage1", "steps": [{"step": "llw", "params": params}]})
    again = load_recipe(tmp_path)["steps"][0]["params"]
    first, second = (STEPS["llw"].apply(replace(state), p) for p in (params, again))
    assert first.tobytes() == second.tobytes() and first.dtype == np.float32


def test_labels_are_not_remembered_with_the_logits():
    z, other, y = two_heads()
    state = beside(z, other)
    one, two = (step("llw").fit([state], [labels])["b"] for labels in (y, np.roll(y, 1)))
    assert not np.array_equal(one, two)


def test_a_head_beside_itself_is_refused():
    z, other, _ = two_heads()
    assert "needs another head" in step("llw", {"head": "stage1"}).refuses(beside(z, other))
    assert "needs another head" in step("llw", stage2=["crt"]).refuses(beside(z, other))
    assert step("llw", {"head": "ncm"}).refuses(beside(z, other)) is None
