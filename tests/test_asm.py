"""The assignment module: who is right where was planted, and must be found out of fold."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, softmax

from src.fusion import STEPS, asm
from src.fusion.step import Unfit
from src.fusion.store import load_recipe, save_recipe
from src.logits import to_range
from src.posthoc.crossfit import no_steps, try_step
from src.posthoc.inputs import Start
from tests.fabricate import config, step
from tests.test_fuse_heads import beside, best_of_both, complementary


def hidden(seed=0, n=300, k=4, folds=3, rotate=False) -> Start:
    """Two heads that are equally sure of themselves everywhere: only the first feature says which
    of them is right, unless `rotate` gives every fold's network a sign of its own."""
    rng = np.random.default_rng(seed)
    states, labels = {}, {}
    for fold in range(folds):
        y, mine = rng.integers(k, size=n), rng.random(n) < 0.6
        wrong = (y + rng.integers(1, k, size=n)) % k
        z, other = 0.3 * rng.normal(size=(2, n, k))
        z[np.arange(n), np.where(mine, y, wrong)] += 4
        other[np.arange(n), np.where(mine, wrong, y)] += 4
        f = rng.normal(size=(n, 6)).astype(np.float32)
        f[:, 0] = np.where(mine, 2, -2) * (-1 if rotate and fold % 2 else 1)
        states[fold], labels[fold] = replace(beside(z, other), features=f), y
    return Start("stage1", states, labels)


@pytest.mark.parametrize("routing", ["hard", "soft"])
def test_who_is_right_where_is_recovered_from_the_logits(routing):
    start = complementary(n=900, k=5, folds=3)
    found = step("asm", {"features": False, "routing": routing})
    trial = try_step(found, start, no_steps(start), config())
    planted = best_of_both(start) - trial.before
    assert planted > 0.3 and trial.kept and trial.gain.value > 0.8 * planted
    params, right = trial.choices[None], []
    for fold, state in start.states.items():
        x = asm._inputs(state, "ncm", False)
        disagree = state.logits.argmax(1) != state.given["ncm"].argmax(1)
        theirs = np.arange(len(start.labels[fold])) % 2 == 1
        right.append(((asm._scores(params, x) > params["offset"]) == theirs)[disagree])
    assert np.concatenate(right).mean() > 0.85


def test_features_are_used_where_they_tell_and_only_there():
    start = hidden()
    trial = try_step(step("asm"), start, no_steps(start), config())
    assert trial.choices[None]["features"] is True
    assert trial.kept and trial.before < 0.7 and trial.after > 0.95
    blind = try_step(step("asm", {"features": False}), start, no_steps(start), config())
    assert blind.after < 0.75
    own = hidden(rotate=True, folds=4)  # half of the networks have another sign
    other = try_step(step("asm"), own, no_steps(own), config())
    assert not other.kept or other.choices[None]["features"] is False


def test_on_pure_noise_the_start_head_stays():
    kept = 0
    for seed in range(6):
        start = complementary(seed, n=240, k=4, folds=3, informed=False)
        kept += try_step(step("asm", {"features": False}), start, no_steps(start), config()).kept
    assert kept <= 2


def test_without_an_image_to_learn_from_it_refuses_with_the_reason():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(90, 3))
    y = z.argmax(1)  # the start head is always right
    states = {k: beside(z[k::3], -z[k::3]) for k in range(3)}
    start = Start("stage1", states, {k: y[k::3] for k in range(3)})
    trial = try_step(step("asm", {"features": False}), start, no_steps(start), config())
    assert not trial.kept and not trial.recipes
    assert trial.reason == "of 60 images 0 are such that ncm alone is right; it takes 8"
    with pytest.raises(Unfit):
        step("asm", {"features": False}).fit([states[0]], [start.labels[0]])


def test_refusals():
    state = complementary().states[0]
    assert "set features: false" in step("asm").refuses(state)
    assert step("asm", {"features": False}).refuses(state) is None
    assert "needs another head" in step("asm", {"head": "stage1"}).refuses(state)


def test_routing_by_hand():
    """The network says 2 of the first image and -2 of the second: x is 0, 2 before and after."""
    z = np.array([[3.0, 1, 0], [3, 1, 0]], np.float32)
    other = np.array([[0.1, 0.2, 0.9], [0.3, 0.2, -0.9]], np.float32)
    state = beside(z, other)
    width = asm._inputs(state, "ncm", False).shape[1]
    assert width == 3 + 3 + 4
    counted = asm._inputs(replace(state, counts=np.array([100, 10, 0])), "ncm", False)
    np.testing.assert_allclose(counted[:, -2:], np.log([[100, 1], [100, 100]]), rtol=1e-6)
    w1 = np.zeros((width, 2), np.float32)
    w1[3] = 1, -1  # the largest logit of the other head: 0.9 and 0.3, of mean 0.6
    mean = np.full(width, 0.6, np.float32)
    params = {"head": "ncm", "features": False, "mean": mean, "deviation": np.ones(width, "f")}
    params |= {"w1": w1, "b1": np.zeros(2, "f"), "w2": np.float32([10, -10]) * 2 / 3}
    params |= {"b2": np.float32([0]), "offset": 0.5}
    scaled = to_range(other, z)
    hard = STEPS["asm"].apply(state, params | {"routing": "hard"})
    np.testing.assert_array_equal(hard, [scaled[0], z[1]])
    soft = STEPS["asm"].apply(state, params | {"routing": "soft"})
    p = expit(np.array([[1.5], [-2.5]]))
    expected = np.log((1 - p) * softmax(z, axis=1) + p * softmax(scaled, axis=1))
    np.testing.assert_allclose(soft, expected, rtol=1e-4)


def test_images_of_the_rare_kind_count_as_much_as_all_others():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 3)).astype(np.float32)  # says nothing of t
    t = np.arange(3000) % 10 == 0
    seen = asm.Seen(x, np.ones(3000), np.zeros(3000), np.where(t, 0, 1))
    assert (seen.target == t).all()
    found = step("asm", {"features": False})._network([seen])
    assert abs(asm._scores(found, x).mean()) < 0.5  # not log(1/9) = -2.2


def test_what_is_fitted_is_stored_and_applies_to_identical_bytes(tmp_path):
    start = complementary(n=400, k=4, folds=2)
    states, labels = list(start.states.values()), list(start.labels.values())
    fits = [step("asm", {"features": False, "offset": 0.0}).fit(states, labels) for _ in range(2)]
    save_recipe(tmp_path, {"head": "stage1", "steps": [{"step": "asm", "params": fits[0]}]})
    again = load_recipe(tmp_path)["steps"][0]["params"]
    found = [STEPS["asm"].apply(replace(states[0]), p) for p in (*fits, again)]
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
    assert found[0].dtype == np.float32
