"""Post-hoc methods one by one, against values worked out by hand."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brute

from src import metrics
from src.errors import UserError
from src.fusion import STEPS, apply_recipe
from src.fusion.step import State
from tests.fabricate import config

F = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
W = np.array([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]], np.float32)  # norms 5, 1, 2
B = np.array([0.0, 7.0, 0.0], np.float32)
M = np.array([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]], np.float32)
HEADS = {
    "stage1": ("linear", {"weight": W, "bias": B}),
    "ncm": ("cosine", {"weight": M, "scale": np.float32(1)}),
}
COUNTS = np.array([100, 10, 1])
STATE = State(F @ W.T + B, F, "stage1", HEADS, COUNTS)


def random_state(n=200, d=6, k=9, seed=0) -> State:
    rng = np.random.default_rng(seed)
    f, w, b, m = (rng.normal(size=s).astype(np.float32) for s in ((n, d), (k, d), k, (k, d)))
    heads = {"stage1": ("linear", {"weight": w, "bias": b})}
    heads["ncm"] = ("cosine", {"weight": m, "scale": np.float32(1)})
    return State(f @ w.T + b, f, "stage1", heads, np.geomspace(1000, 3, k).round())


def test_tau_norm_by_hand():
    # f·w: [25, 4, 6] and [8, 2, 0]; divided by norms 5, 1, 2
    step = STEPS["tau_norm"]
    np.testing.assert_allclose(step.apply(STATE, {"tau": 1.0}), [[5, 4, 3], [1.6, 2, 0]])
    np.testing.assert_allclose(step.apply(STATE, {"tau": 2.0})[0], [1, 4, 1.5])


def test_tau_zero_only_drops_the_bias():
    np.testing.assert_allclose(STEPS["tau_norm"].apply(STATE, {"tau": 0.0}) + B, STATE.logits)


def test_tau_norm_refuses_what_it_cannot_normalise():
    refuses = STEPS["tau_norm"].refuses
    assert refuses(STATE, config()) is None
    assert "is cosine" in refuses(State(F @ M.T, F, "ncm", HEADS), config())
    assert "features" in refuses(State(STATE.logits, None, "stage1", HEADS), config())
    bent = State(STATE.logits**2, F, "stage1", HEADS)
    assert "no linear function" in refuses(bent, config())
    rough = random_state()
    cast = rough.logits.view(np.uint32) & np.uint32(0xFFFF0000)  # what bf16 leaves of a number
    assert refuses(rough.with_logits(cast.view(np.float32)), config()) is None


def test_logit_adjustment_by_hand():
    step, logits = STEPS["logit_adjustment"], np.log([[100, 20, 3]]).astype(np.float32)
    state = STATE.with_logits(logits)
    np.testing.assert_allclose(np.exp(step.apply(state, {"tau": 1.0})), [[1, 2, 3]], rtol=1e-5)
    np.testing.assert_allclose(
        np.exp(step.apply(state, {"tau": 0.5})), [[10, 20 / 10**0.5, 3]], rtol=1e-5
    )
    assert np.array_equal(step.apply(state, {"tau": 0.0}), logits)


def test_logit_adjustment_gives_more_to_the_rare_the_larger_tau_is():
    state = random_state(n=500)
    step = STEPS["logit_adjustment"]
    rare = [(step.apply(state, {"tau": t}).argmax(1) >= 6).sum() for t in np.linspace(0, 2, 9)]
    assert rare == sorted(rare) and rare[-1] > rare[0]


def test_logit_adjustment_needs_counts_that_differ():
    refuses = STEPS["logit_adjustment"].refuses
    assert refuses(STATE, config()) is None
    assert "as many" in refuses(replace(STATE, counts=np.array([7, 7, 7])), config())
    assert "needs the classes' counts" in refuses(replace(STATE, counts=None), config())


@pytest.mark.parametrize(
    "train",
    [
        {"criterion": {"name": "balanced_softmax"}},
        {"criterion": {"name": "logit_adjusted"}},
        {"criterion": {"name": "lade"}},
        {"criterion": {"name": "class_balanced"}},
        {"sampler": "class_balanced"},
        {"second_sampler": "reversed", "mixing": {"mixup": 1.0}},
        {"deferred": {"weights": True}},
        {"deferred": {"sampling": True}},
    ],
)
def test_logit_adjustment_leaves_alone_what_is_balanced(train):
    assert "already" in STEPS["logit_adjustment"].refuses(STATE, config(train=train))


@pytest.mark.parametrize("criterion", ["balanced_softmax", "class_balanced"])
def test_logit_adjustment_takes_a_criterion_whose_balancing_is_off(criterion):
    off = {"tau": 0} if criterion == "balanced_softmax" else {"beta": 0}
    train = {"criterion": {"name": criterion} | off}
    assert STEPS["logit_adjustment"].refuses(STATE, config(train=train)) is None


def test_logit_adjustment_leaves_heads_of_stage_2_alone():
    crt = replace(STATE, start="crt")
    assert STEPS["logit_adjustment"].refuses(crt, config()) == "crt is balanced already"


def test_ncm_fusion_by_hand():
    # first image: cosines [1, .8, .6] onto the range of z = [25, 11, 6]: [25, 15.5, 6]
    step = STEPS["ncm_fusion"]
    fused = step.apply(STATE, {"w": 0.5, "head": "ncm"})
    np.testing.assert_allclose(fused[0], [25, 13.25, 6], rtol=1e-5)
    np.testing.assert_allclose(step.apply(STATE, {"w": 0, "head": "ncm"})[0], [25, 15.5, 6], 1e-5)


def test_ncm_fusion_with_all_weight_on_the_linear_head_is_the_identity():
    state = random_state()
    fused = STEPS["ncm_fusion"].apply(state, {"w": 1.0, "head": "ncm"})
    np.testing.assert_array_equal(fused, state.logits)


def test_no_weight_on_the_linear_head_ranks_as_ncm_does():
    state = random_state()
    fused = STEPS["ncm_fusion"].apply(state, {"w": 0.0, "head": "ncm"})
    unit = state.features / np.linalg.norm(state.features, axis=1, keepdims=True)
    means = state.heads["ncm"][1]["weight"]
    means = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_array_equal(fused.argmax(1), (unit @ means.T).argmax(1))


def test_temperature_finds_the_minimum_of_the_likelihood():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 5))
    p = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    labels = (p.cumsum(1) > rng.random((4000, 1))).argmax(1)
    states = [
        State(part.astype(np.float32), None, "stage1")
        for part in (3 * true[:1500], 3 * true[1500:])
    ]
    found = STEPS["temperature"].fit(states, [labels[:1500], labels[1500:]], config())["T"]
    best = brute(lambda t: metrics.nll(3 * true / t[0], labels), [(1, 6)], Ns=200)[0]
    assert found == pytest.approx(best, rel=2e-3)
    assert found == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("temperature", [0.02, 0.5, 1.0, 37.0])
def test_temperature_changes_no_argmax(temperature):
    state = random_state(2000)
    scaled = STEPS["temperature"].apply(state, {"T": temperature})
    np.testing.assert_array_equal(scaled.argmax(1), state.logits.argmax(1))


@pytest.mark.parametrize("name", ["tau_norm", "logit_adjustment", "ncm_fusion"])
def test_candidates_share_work_and_give_what_each_gives_alone(name):
    step, state = STEPS[name], random_state()
    candidates = step.candidates(config(posthoc={"grid": 5}))
    for params, logits in zip(candidates, step.each(state, candidates), strict=True):
        np.testing.assert_array_equal(logits, step.apply(state, params))
        assert logits.dtype == np.float32


def test_grids_hold_what_the_config_says():
    settings = config(posthoc={"grid": 3, "tau_max": 1.5})
    assert [c["tau"] for c in STEPS["tau_norm"].candidates(settings)] == [0, 0.75, 1.5]
    assert [c["tau"] for c in STEPS["logit_adjustment"].candidates(settings)] == [0.75, 1.5]
    found = STEPS["ncm_fusion"].candidates(settings)  # 1 would leave the step out
    assert found == [{"w": 0.5, "head": "ncm"}, {"w": 0.0, "head": "ncm"}]


def test_every_step_of_the_schema_is_in_the_table():
    assert list(STEPS) == list(config().posthoc.steps)


def test_a_recipe_without_steps_returns_stage_1_untouched():
    z = np.random.default_rng(0).normal(size=(2, 3))
    assert apply_recipe({"head": "stage1", "steps": []}, None, {}, z, COUNTS) is z


def test_a_recipe_is_its_steps_in_order(monkeypatch):
    state = random_state(50)
    heads = state.heads | {
        "crt": ("linear", {"weight": W[[0, 1, 2] * 3, :].repeat(3, 1), "bias": np.arange(9.0)})
    }
    steps = [
        {"step": "tau_norm", "params": {"tau": 0.5}},
        {"step": "logit_adjustment", "params": {"tau": 0.3}},
        {"step": "ncm_fusion", "params": {"w": 0.3, "head": "ncm"}},
        {"step": "temperature", "params": {"T": 2.0}},
    ]
    counts = state.counts
    expected = State(np.zeros_like(state.logits), state.features, "crt", heads, counts)
    for step in steps:
        expected = expected.with_logits(STEPS[step["step"]].apply(expected, step["params"]))
    whole = apply_recipe(
        {"head": "crt", "steps": steps}, state.features, heads, state.logits, counts
    )
    np.testing.assert_allclose(whole, expected.logits, rtol=1e-5)
    monkeypatch.setattr(metrics, "CHUNK", 40)
    chunked = apply_recipe(
        {"head": "crt", "steps": steps}, state.features, heads, state.logits, counts
    )
    np.testing.assert_allclose(chunked, whole, rtol=1e-5)


def test_a_recipe_names_the_head_that_is_missing():
    recipe = {
        "head": "stage1",
        "steps": [{"step": "ncm_fusion", "params": {"w": 0, "head": "ncm"}}],
    }
    with pytest.raises(ValueError, match=r"needs the heads \['ncm'\]"):
        apply_recipe(recipe, F, {"stage1": HEADS["stage1"]}, STATE.logits, COUNTS)


def test_tau_norm_must_come_first_and_steps_do_not_repeat():
    with pytest.raises(UserError, match="must be the first"):
        config(posthoc={"steps": ["ncm_fusion", "tau_norm"]})
    with pytest.raises(UserError, match="must not repeat"):
        config(posthoc={"steps": ["temperature", "temperature"]})


def test_stages_4_and_6_never_import_torch():
    code = (
        "import sys, src.config, src.metrics, src.fusion, src.posthoc.calibrate, "
        "src.ensemble.ensemble; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
