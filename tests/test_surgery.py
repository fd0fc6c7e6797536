"""A linear head's weights cut and scaled after training, by hand and against stage 2's heads."""

import numpy as np
import pytest
import torch

from src.errors import UserError
from src.fusion import STEPS
from src.fusion.step import State
from src.metrics import balanced_accuracy
from src.posthoc.crossfit import no_steps, try_step
from src.posthoc.inputs import Start
from src.rebalance.maxnorm import project_
from tests.fabricate import config, step

F = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
W = np.array([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]], np.float32)  # norms 5, 1, 2
B = np.array([0.0, 7.0, -1.0], np.float32)
STATE = State(F @ W.T + B, F, "stage1", {"stage1": ("linear", {"weight": W, "bias": B})})


def test_tau_keeps_or_drops_the_bias():
    apply = STEPS["tau_norm"].apply  # f · w: [25, 4, 6] and [8, 2, 0]
    np.testing.assert_allclose(apply(STATE, {"tau": 1.0}), [[5, 4, 3], [1.6, 2, 0]])
    kept = apply(STATE, {"tau": 1.0, "bias": "kept"})
    np.testing.assert_allclose(kept, [[5, 11, 2], [1.6, 9, -1]])
    np.testing.assert_allclose(apply(STATE, {"tau": 0.0, "bias": "kept"}), STATE.logits)


def test_max_norm_by_hand_and_as_stage_2_projects():
    apply = STEPS["max_norm"].apply  # ratio 0.25: norms above 1 + 0.25 · 4 = 2
    kept = apply(STATE, {"ratio": 0.25, "bias": "kept"})
    np.testing.assert_allclose(kept, [[10, 11, 5], [3.2, 9, -1]], rtol=1e-6)
    weight = torch.from_numpy(W.copy())
    project_(weight, 2.0)
    np.testing.assert_allclose(kept, F @ weight.numpy().T + B, rtol=1e-6)
    same = apply(STATE, {"ratio": 1.0, "bias": "kept"})
    np.testing.assert_allclose(same, STATE.logits)


def test_no_norm_above_the_smallest_ranks_as_tau_of_one():
    flat = STEPS["max_norm"].apply(STATE, {"ratio": 0.0})
    unit = STEPS["tau_norm"].apply(STATE, {"tau": 1.0})
    np.testing.assert_allclose(flat, unit * 1.0, rtol=1e-6)  # the smallest norm is 1


def test_grids_begin_beside_leaving_the_step_out():
    dropped, kept = ({"grid": 3, "bias": b} for b in ("dropped", "kept"))
    assert step("tau_norm", dropped).candidates() == [{"tau": t} for t in (0, 1, 2)]
    assert [p["tau"] for p in step("tau_norm", kept).candidates()] == [1, 2]
    assert [p["ratio"] for p in step("max_norm", kept).candidates()] == [0.5, 0]
    assert [p["ratio"] for p in step("max_norm", dropped).candidates()] == [1, 0.5, 0]
    assert step("tau_norm").candidates() == [{"tau": round(0.1 * i, 6)} for i in range(21)]
    l2 = step("tau_norm", {"tau_max": 1, "grid": 2, "bias": "kept"}).candidates()
    assert l2 == [{"tau": 1.0, "bias": "kept"}]


def test_what_is_refused():
    cosine = State(STATE.logits, F, "stage1", {"stage1": ("cosine", {"weight": W, "scale": 1.0})})
    assert "needs a linear head, not one of kind cosine" in step("max_norm").refuses(cosine)
    assert step("max_norm").refuses(STATE) is None
    with pytest.raises(UserError, match="max_norm starts again from the weights"):
        config(posthoc={"steps": ["tau_norm", "max_norm"]})


@pytest.mark.parametrize("name", ["tau_norm", "max_norm"])
def test_norms_that_follow_the_class_counts_are_planted_and_found(name):
    """Directions are right, but the first half of the classes has weights three times too long."""
    rng = np.random.default_rng(0)
    k, states, labels = 6, {}, {}
    directions = np.linalg.qr(rng.normal(size=(k, k)))[0].astype(np.float32)
    weight = directions * np.repeat([3, 1], k // 2).astype(np.float32)[:, None]
    heads = {"stage1": ("linear", {"weight": weight, "bias": np.zeros(k, np.float32)})}
    for fold in range(3):
        y = rng.integers(k, size=200)
        f = (3 * directions[y] + rng.normal(size=(200, k))).astype(np.float32)
        states[fold], labels[fold] = State(f @ weight.T, f, "stage1", heads), y
    start = Start("stage1", states, labels)
    trial = try_step(step(name, {"bias": "kept"}), start, no_steps(start), config())
    z, y = (np.concatenate(list(part)) for part in (
        [s.features @ directions.T for s in states.values()], labels.values()))  # fmt: skip
    assert trial.kept and trial.after > balanced_accuracy(z, y) - 0.02
    assert trial.gain.value > 0.05
