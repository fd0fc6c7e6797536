"""Post-hoc methods one by one, against values worked out by hand."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brute

import src.fusion.step as step_module
import src.fusion.weights as weights_module
from src import metrics
from src.artifacts.files import read_json, write_arrays
from src.errors import UserError
from src.fusion import STEPS, apply_recipe
from src.fusion.step import State
from src.fusion.store import fingerprint, load_recipe, save_recipe, told
from tests.fabricate import config, count, step

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
    apply = STEPS["tau_norm"].apply
    np.testing.assert_allclose(apply(STATE, {"tau": 1.0}), [[5, 4, 3], [1.6, 2, 0]])
    np.testing.assert_allclose(apply(STATE, {"tau": 2.0})[0], [1, 4, 1.5])


def test_tau_zero_only_drops_the_bias():
    np.testing.assert_allclose(STEPS["tau_norm"].apply(STATE, {"tau": 0.0}) + B, STATE.logits)


def test_tau_norm_refuses_what_it_cannot_normalise():
    refuses = step("tau_norm").refuses
    assert refuses(STATE) is None
    assert "not one of kind cosine" in refuses(State(F @ M.T, F, "ncm", HEADS))
    assert "features" in refuses(State(STATE.logits, None, "stage1", HEADS))
    bent = State(STATE.logits**2, F, "stage1", HEADS)
    assert "no linear function" in refuses(bent)
    rough = random_state()
    cast = rough.logits.view(np.uint32) & np.uint32(0xFFFF0000)  # what bf16 leaves of a number
    assert refuses(rough.with_logits(cast.view(np.float32))) is None


def test_logit_adjustment_by_hand():
    apply, logits = STEPS["logit_adjustment"].apply, np.log([[100, 20, 3]]).astype(np.float32)
    state = STATE.with_logits(logits)
    np.testing.assert_allclose(np.exp(apply(state, {"tau": 1.0})), [[1, 2, 3]], rtol=1e-5)
    np.testing.assert_allclose(
        np.exp(apply(state, {"tau": 0.5})), [[10, 20 / 10**0.5, 3]], rtol=1e-5
    )
    assert np.array_equal(apply(state, {"tau": 0.0}), logits)


def test_logit_adjustment_gives_more_to_the_rare_the_larger_tau_is():
    state = random_state(n=500)
    apply = STEPS["logit_adjustment"].apply
    rare = [(apply(state, {"tau": t}).argmax(1) >= 6).sum() for t in np.linspace(0, 2, 9)]
    assert rare == sorted(rare) and rare[-1] > rare[0]


def test_logit_adjustment_needs_counts_that_differ():
    refuses = step("logit_adjustment").refuses
    assert refuses(STATE) is None
    assert "as many" in refuses(replace(STATE, counts=np.array([7, 7, 7])))
    assert "needs the classes' counts" in refuses(replace(STATE, counts=None))


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
    assert "already" in step("logit_adjustment", train=train).refuses(STATE)


@pytest.mark.parametrize("criterion", ["balanced_softmax", "class_balanced"])
def test_logit_adjustment_takes_a_criterion_whose_balancing_is_off(criterion):
    off = {"tau": 0} if criterion == "balanced_softmax" else {"beta": 0}
    train = {"criterion": {"name": criterion} | off}
    assert step("logit_adjustment", train=train).refuses(STATE) is None


def test_logit_adjustment_leaves_heads_of_stage_2_alone():
    refuses = step("logit_adjustment").refuses
    for head in ("crt", "crt@raw"):
        said = refuses(replace(STATE, start=head))
        assert said == "the head has balanced the classes already"
    assert refuses(replace(STATE, start="stage1@raw")) is None  # a branch of stage 1's network


def test_ncm_fusion_by_hand():
    # first image: cosines [1, .8, .6] onto the range of z = [25, 11, 6]: [25, 15.5, 6]
    apply = STEPS["ncm_fusion"].apply
    fused = apply(STATE, {"w": 0.5, "head": "ncm"})
    np.testing.assert_allclose(fused[0], [25, 13.25, 6], rtol=1e-5)
    np.testing.assert_allclose(apply(STATE, {"w": 0, "head": "ncm"})[0], [25, 15.5, 6], 1e-5)


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
    found = step("temperature").fit(states, [labels[:1500], labels[1500:]])["T"]
    best = brute(lambda t: metrics.nll(3 * true / t[0], labels), [(1, 6)], Ns=200)[0]
    assert found == pytest.approx(best, rel=2e-3)
    assert found == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("temperature", [0.02, 0.5, 1.0, 37.0])
def test_temperature_changes_no_argmax(temperature):
    state = random_state(2000)
    scaled = STEPS["temperature"].apply(state, {"T": temperature})
    np.testing.assert_array_equal(scaled.argmax(1), state.logits.argmax(1))


@pytest.mark.parametrize("name", ["tau_norm", "logit_adjustment", "ncm_fusion"])
def test_candidates_share_work_and_give_what_each_gives_alone(name, monkeypatch):
    found, state = step(name, {"grid": 5}), random_state()
    alone = [found.apply(random_state(), params) for params in found.candidates()]
    calls = [count(monkeypatch, module, "head_logits") for module in (step_module, weights_module)]
    for params, expected in zip(found.candidates(), alone, strict=True):
        together = found.apply(state, params)
        np.testing.assert_array_equal(together, expected)
        assert together.dtype == np.float32
    assert sum(map(len, calls)) == (name != "logit_adjustment")  # one product for all of them


def test_what_candidates_share_is_of_these_rows_and_logits_alone():
    state = random_state()
    made = []
    for one in (state, state, state.rows(slice(3)), state.with_logits(state.logits + 1)):
        one.once("key", lambda: made.append(1))
    assert len(made) == 3


def test_logits_of_a_head_are_those_given_or_else_computed():
    np.testing.assert_array_equal(STATE.logits_of("stage1"), F @ W.T + B)
    given = {"stage1": np.arange(6.0).reshape(2, 3), "live": np.ones((2, 3))}
    state = replace(STATE, given=given)
    assert state.logits_of("stage1") is given["stage1"] and state.logits_of("live").all()
    assert state.rows(slice(1, 2)).logits_of("stage1").tolist() == [[3, 4, 5]]
    with pytest.raises(UserError, match=r"the head lws is needed .*\['ncm', 'stage1'\]; run 04"):
        state.logits_of("lws")


def test_grids_hold_what_the_config_says():
    keys = {"grid": 3, "tau_max": 1.5}
    assert [c["tau"] for c in step("tau_norm", keys).candidates()] == [0, 0.75, 1.5]
    assert [c["tau"] for c in step("logit_adjustment", keys).candidates()] == [0.75, 1.5]
    found = step("ncm_fusion", {"grid": 3}).candidates()  # 1 would leave the step out
    rest = {"head": "ncm", "scaler": "minmax", "operator": "convex"}
    assert found == [rest | {"w": 0.5}, rest | {"w": 0.0}]


def test_a_recipe_without_steps_returns_the_heads_logits_untouched():
    z = np.random.default_rng(0).normal(size=(2, 3))
    assert apply_recipe({"head": "stage1", "steps": []}, None, {}, {"stage1": z}, COUNTS) is z


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
    expected = expected.with_logits(expected.logits_of("crt"))
    for one in steps:
        expected = expected.with_logits(STEPS[one["step"]].apply(expected, one["params"]))
    given = {"stage1": state.logits}
    whole = apply_recipe({"head": "crt", "steps": steps}, state.features, heads, given, counts)
    np.testing.assert_allclose(whole, expected.logits, rtol=1e-5)
    monkeypatch.setattr("src.metrics.outcomes.CHUNK", 40)
    chunked = apply_recipe({"head": "crt", "steps": steps}, state.features, heads, given, counts)
    np.testing.assert_allclose(chunked, whole, rtol=1e-5)


def test_a_recipe_names_the_head_that_is_missing():
    recipe = {
        "head": "stage1",
        "steps": [{"step": "ncm_fusion", "params": {"w": 0, "head": "ncm"}}],
    }
    given = {"stage1": STATE.logits}
    with pytest.raises(UserError, match="the head ncm is needed and is not among"):
        apply_recipe(recipe, F, {"stage1": HEADS["stage1"]}, given, COUNTS)
    with pytest.raises(UserError, match="the head lws is needed and is not among"):
        apply_recipe(recipe | {"head": "lws"}, F, HEADS, given, COUNTS)


def test_tau_norm_must_come_first_and_steps_do_not_repeat():
    with pytest.raises(UserError, match="must be the first"):
        config(posthoc={"steps": ["ncm_fusion", "tau_norm"]})
    with pytest.raises(UserError, match="must not repeat"):
        config(posthoc={"steps": ["temperature", "temperature"]})


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"steps": ["tau_nrom"]}, "`posthoc.steps.0`: found 'tau_nrom'"),
        ({"steps": ["tau_nrom"]}, "did you mean 'tau_norm'?"),
        ({"steps": [{"name": "tau_norm", "tau_mx": 1}]}, "did you mean `tau_max`?"),
        ({"steps": [{"name": "tau_norm", "tau_max": 11}]}, "`posthoc.steps.0.tau_max`: found 11"),
        ({"tau_max": 1}, "posthoc.steps: [{name: tau_norm, tau_max: 2.0}]"),
        ({"grid": 5}, "posthoc.steps: [{name: tau_norm, grid: 21}]"),
        ({"min_gain": 0.1}, "`min_gain` is no key any more: it is judge.min_gain"),
    ],
)
def test_a_mistake_in_the_steps_is_named(tree, says):
    with pytest.raises(UserError, match=re.escape(says)):
        config(posthoc=tree)


def test_a_key_that_is_called_like_a_step_keeps_its_name_in_errors():
    with pytest.raises(UserError, match="`model.network.temperature`: found -1"):
        config(model={"network": {"name": "kt", "temperature": -1}})


def test_a_bare_name_is_short_for_a_step_with_its_defaults():
    short, long = config(posthoc={"steps": ["tau_norm"]}), [{"name": "tau_norm", "grid": 21}]
    assert short == config(posthoc={"steps": long})
    assert short.posthoc.steps[0].tau_max == 2.0


# ---- parameters on disk ------------------------------------------------------------------------


def test_arrays_go_beside_the_json_and_come_back(tmp_path):
    w, again = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3)
    step = {"step": "shift", "params": {"w": w, "tau": np.float64(0.5)}}
    tree = {"head": "crt", "steps": [step], "per_fold": {"0": [again]}}
    assert save_recipe(tmp_path, tree) == ["posthoc.json", "posthoc.npz"]
    reference = {"npz": "steps.0.params.w", "shape": [2, 3]}
    plain = read_json(tmp_path / "posthoc.json")
    assert plain == {
        "head": "crt",
        "steps": [{"step": "shift", "params": {"w": reference, "tau": 0.5}}],
        "per_fold": {"0": [reference]},  # equal arrays are kept once
    }
    found = load_recipe(tmp_path)
    np.testing.assert_array_equal(found["steps"][0]["params"]["w"], w)
    np.testing.assert_array_equal(found["per_fold"]["0"][0], w)
    for params in (plain["steps"][0]["params"], found["steps"][0]["params"]):
        assert told(params) == '{"w": "array [2, 3]", "tau": 0.5}'
    assert told({"month": "février", "n": np.int64(2)}) == '{"month": "février", "n": 2}'
    assert told([0.5, (w, {"w": reference})]) == '[0.5, ["array [2, 3]", {"w": "array [2, 3]"}]]'
    write_arrays(tmp_path / "posthoc.npz", **{"steps.0.params.w": w[:1]})
    with pytest.raises(UserError, match=r"posthoc.npz: the array steps.0.params.w .*\[1, 3\]"):
        load_recipe(tmp_path)
    assert save_recipe(tmp_path, {"steps": []}) == ["posthoc.json"]
    assert not (tmp_path / "posthoc.npz").exists()


def test_fingerprints_tell_arrays_apart():
    one, two = ({"w": np.array([1.0, x])} for x in (2.0, 3.0))
    assert fingerprint(one) == fingerprint({"w": np.array([1.0, 2.0])}) != fingerprint(two)
    assert fingerprint(one) != fingerprint({"w": np.array([[1.0, 2.0]])})
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_stages_4_and_6_never_import_torch():
    code = (
        "import sys, src.config, src.metrics, src.fusion, src.posthoc.calibrate, "
        "src.ensemble.ensemble; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
