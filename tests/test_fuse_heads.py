"""Fusion of any two heads: the grid against the publication's formulas, and planted truths."""

import re
from dataclasses import replace

import numpy as np
import pytest

from src.artifacts.files import read_json
from src.errors import UserError
from src.fusion import STEPS
from src.fusion.pair import partner
from src.fusion.step import State
from src.logits import by_eta, to_range
from src.posthoc.calibrate import posthoc
from src.posthoc.crossfit import no_steps, try_step
from src.posthoc.inputs import Start
from tests.fabricate import (
    RUNS,
    config,
    digits_world,
    step,
    write_dataset,
    write_experiment,
)

MMAL = {"network": {"name": "mmal"}}


def pair(n=40, k=7, seed=0) -> State:
    """Two heads whose logits are known: the other one's are cosines."""
    rng = np.random.default_rng(seed)
    z, other = 3 * rng.normal(size=(n, k)) + 1, rng.uniform(-1, 1, (n, k))
    return beside(z, other)


def beside(z: np.ndarray, other: np.ndarray, **more) -> State:
    z, other = z.astype(np.float32), other.astype(np.float32)
    return State(z, None, "stage1", given={"stage1": z, "ncm": other}, **more)


def slow(z: np.ndarray, other: np.ndarray, scaler: str, operator: str, w: float) -> np.ndarray:
    """Of one image, class by class, from the formulas of methods.md section 7."""
    if scaler == "minmax":
        stretch = (max(z) - min(z)) / (max(other) - min(other))
        other = [stretch * (x - min(other)) + min(z) for x in other]
    if scaler == "eta":
        other = [max(z) / max(other) * x for x in other]
    if operator == "convex":
        return np.array([w * a + (1 - w) * b for a, b in zip(z, other, strict=True)])
    if operator == "sum":
        return np.array([a + b for a, b in zip(z, other, strict=True)])
    if operator == "max":
        return np.array([max(a, b) for a, b in zip(z, other, strict=True)])
    w = w if operator == "softmax_convex" else 0.5
    p, q = (np.exp(x) / np.sum(np.exp(x)) for x in (np.array(z), np.array(other)))
    return np.log(w * p + (1 - w) * q)


@pytest.mark.parametrize("scaler", ["none", "minmax", "eta"])
@pytest.mark.parametrize("operator", ["sum", "softmax_sum", "max", "convex", "softmax_convex"])
def test_every_point_of_the_grid_is_its_formula(scaler, operator):
    state = pair()
    z, other = state.logits.astype(float), state.given["ncm"].astype(float)
    safe = (z.max(1) > 0) & (other.max(1) > 0)
    params = {"head": "ncm", "scaler": scaler, "operator": operator, "w": 0.3}
    if operator in ("sum", "softmax_sum", "max"):
        del params["w"]
    found = STEPS["fusion"].apply(state, params)
    assert found.dtype == np.float32 and safe.sum() > 30
    expected = np.array([slow(*pair, scaler, operator, 0.3) for pair in zip(z, other, strict=True)])
    np.testing.assert_allclose(found[safe], expected[safe], rtol=1e-4, atol=1e-4)


def test_the_published_baselines_are_points_of_the_default_grid():
    found = step("fusion").candidates()
    for published in (
        {"operator": "sum"},
        {"operator": "softmax_sum"},
        {"operator": "max"},
        {"operator": "convex", "w": 0.5},
    ):
        for scaler in ("none", "minmax", "eta"):
            assert {"head": "ncm", "scaler": scaler} | published in found
    assert len(found) == 3 * (3 + 20)


def test_the_candidates_begin_beside_leaving_it_out_and_end_at_the_other_head():
    found = [p.get("w", 0.5) for p in step("fusion", {"heads": ["ncm", "crt"]}).candidates()]
    assert found == sorted(found, reverse=True) and found[0] == 0.95 and found[-1] == 0


@pytest.mark.parametrize("scaler", ["none", "minmax", "eta"])
def test_the_largest_of_both_is_the_argmax_over_the_concatenation(scaler):
    """In which the start head comes first: min-max and eta make both heads' largest the same."""
    state = pair(n=200)
    state = beside(state.logits / 5, state.given["ncm"])
    found = STEPS["fusion"].apply(state, {"head": "ncm", "scaler": scaler, "operator": "max"})
    top, other = state.logits.max(1), state.given["ncm"].max(1)
    of_z = (top >= other) if scaler == "none" else np.ones(200, bool)
    expected = np.where(of_z, state.logits.argmax(1), state.given["ncm"].argmax(1))
    np.testing.assert_array_equal(found.argmax(1), expected)
    assert scaler != "none" or (~of_z).any()


def test_a_recipe_of_ncm_fusion_from_before_fusion_still_applies():
    state = pair()
    old = STEPS["ncm_fusion"].apply(state, {"w": 0.3, "head": "ncm"})
    expected = 0.3 * state.logits + 0.7 * to_range(state.given["ncm"], state.logits)
    np.testing.assert_allclose(old, expected, rtol=1e-6)
    for params in step("ncm_fusion", {"grid": 5}).candidates():
        assert params in step("fusion", {"grid": 5}).candidates()


def test_eta_never_turns_a_ranking_round():
    """Log-probabilities and minus distances have maxima that are not above 0."""
    z = np.array([[2.0, 1, 0], [2, 1, 0], [-1, -2, -3], [1, 0, -1]], np.float32)
    other = np.array([[0.5, 0.1, -1], [-3, -1, -2], [0.5, 0.1, -1], [0, -1, -2]], np.float32)
    found = by_eta(other, z)
    np.testing.assert_allclose(found[0], [2, 0.4, -4])
    assert (np.argsort(found, axis=1) == np.argsort(other, axis=1)).all()
    np.testing.assert_allclose(found[1:], to_range(other[1:], z[1:]))
    assert found.dtype == np.float32


def test_equal_logits_everywhere_stay_finite():
    state = beside(np.zeros((3, 2)), np.ones((3, 2)))
    for params in step("fusion", {"operators": ["sum", "softmax_sum", "max"]}).candidates():
        found = STEPS["fusion"].apply(state, params)
        assert np.isfinite(found).all() and (found[:, 0] == found[:, 1]).all()


# ---- which heads -------------------------------------------------------------------------------


def test_any_head_or_branch_is_fused_by_name_and_a_title_means_all_its_branches():
    keys = {"heads": ["stage1@object", "ncm"], "grid": 2}
    found = step("fusion", keys, model=MMAL)
    assert found.reads() == ["stage1@object", "ncm@raw", "ncm@object"]
    two = step("fusion", {"heads": ["crt2"]}, stage2=["crt", {"head": "crt", "name": "crt2"}])
    assert two.reads() == ["crt2"]


@pytest.mark.parametrize("branch", ["raw", "object"])
def test_beside_a_branch_stands_the_head_of_the_same_branch(branch):
    assert partner(config(model=MMAL), "ncm", f"stage1@{branch}") == f"ncm@{branch}"
    assert partner(config(model=MMAL), None, f"stage1@{branch}") == f"ncm@{branch}"


def test_a_start_head_is_not_fused_with_itself():
    found, state = step("fusion", {"heads": ["stage1", "crt"], "grid": 3}), pair()
    assert {p["head"] for p in found.candidates()} == {"stage1", "crt"}
    assert {p["head"] for p in found.options(state)} == {"crt"}
    alone = step("fusion", {"heads": ["stage1"]})
    assert "a head is not fused with itself" in alone.refuses(state)
    assert "needs another head" in step("fusion", stage2=["crt"]).refuses(state)


@pytest.mark.parametrize(
    ("posthoc", "says"),
    [
        (
            {"steps": [{"name": "fusion", "heads": ["crt", "ncn"]}]},
            "step fusion of posthoc.steps names the head 'ncn', but there are only ['stage1', "
            "'crt', 'ncm']; did you mean 'ncm'?",
        ),
        (
            {"heads": ["crt"], "steps": [{"name": "fusion", "heads": ["crt"]}]},
            "would fuse 'crt', the only one of posthoc.heads, with itself",
        ),
        (
            {"steps": [{"name": "fusion", "scalers": ["mnimax"]}]},
            "scalers.0`: found 'mnimax'; Input should be",
        ),
        ({"steps": [{"name": "fusion", "heads": []}]}, "posthoc.steps.0.heads"),
    ],
)
def test_a_mistake_is_named_before_anything_is_loaded(posthoc, says):
    with pytest.raises(UserError, match=re.escape(says)):
        config(posthoc=posthoc)


def test_heads_of_different_numbers_of_classes_are_refused():
    state = beside(np.ones((4, 3)), np.ones((4, 5)))
    with pytest.raises(UserError, match="head ncm has 5 classes and stage1 has 3"):
        step("fusion").refuses(state)


# ---- planted truths ----------------------------------------------------------------------------


def complementary(seed=0, n=1200, k=8, folds=4, skill=3.0, informed=True) -> Start:
    """Two heads of which each knows half of the images, and is unsure of the others: one is right
    where an image's number is even, the other where it is odd. Not informed: neither knows any."""
    rng = np.random.default_rng(seed)
    states, labels = {}, {}
    for fold in range(folds):
        y = rng.integers(k, size=n // folds)
        z, other = rng.normal(size=(2, len(y), k))
        if informed:
            mine = np.arange(len(y)) % 2 == 0
            z[mine, y[mine]] += 2 * skill
            other[~mine, y[~mine]] += 2 * skill
        states[fold], labels[fold] = beside(z, other * 0.1), y
    return Start("stage1", states, labels)


def best_of_both(start: Start) -> float:
    """Accuracy of the one who believes, image by image, the head that knows."""
    right = []
    for k, state in start.states.items():
        mine = np.arange(len(start.labels[k])) % 2 == 0
        z = np.where(mine[:, None], state.logits, state.given["ncm"])
        right.append(z.argmax(1) == start.labels[k])
    return float(np.mean(np.concatenate(right)))


def test_fusion_of_complementary_heads_gains_what_was_planted():
    start = complementary()
    trial = try_step(step("fusion"), start, no_steps(start), config())
    planted = best_of_both(start) - trial.before
    assert planted > 0.35 and trial.kept
    assert trial.gain.value > 0.9 * planted
    # a tenth of the scale is not heard in a plain sum
    narrow = try_step(step("fusion", {"scalers": ["none"], "operators": ["sum"]}), start,
                      no_steps(start), config())  # fmt: skip
    assert narrow.gain.value < 0.5 * planted


def test_on_pure_noise_the_whole_grid_keeps_nothing():
    gains, kept = [], 0
    for seed in range(20):
        start = complementary(seed, n=400, informed=False)
        trial = try_step(step("fusion", {"grid": 6}), start, no_steps(start), config())
        gains.append(trial.gain.value)
        kept += trial.kept
    assert np.mean(gains) < 2 * np.std(gains) / np.sqrt(len(gains))
    assert kept <= 5  # a gain above its standard error by chance: one in six


def test_the_whole_stage_fuses_two_heads_of_stage_2(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = digits_world()
    write_dataset(world)
    write_experiment(world, "exp")
    steps = [{"name": "fusion", "heads": ["crt", "ncm"], "grid": 5}]
    table = posthoc(config(posthoc={"steps": steps}), "exp")
    tried = read_json(RUNS / "digits/exp/posthoc/posthoc.json")["tried"]
    assert {t["head"] for t in tried} == {"stage1", "crt", "ncm"}
    for trial in tried:  # also per fold
        used = [trial["params"], *trial["per_fold"].values()]
        assert all(p is None or p["head"] != trial["head"] for p in used)
    row = table.set_index(["start", "step"]).loc[("stage1", "fusion")]
    assert row["kept"] == "yes" and row["gain"] > 0.05


def test_the_rows_of_a_chunk_are_fused_as_the_whole_is():
    state = pair(30)
    for params in step("fusion", {"grid": 3}).candidates():
        whole = STEPS["fusion"].apply(replace(state), params)
        parts = [
            STEPS["fusion"].apply(state.rows(slice(i, i + 7)), params) for i in range(0, 30, 7)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
