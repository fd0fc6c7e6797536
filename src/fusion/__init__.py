"""Fusion and calibration of logits after training; fitted by 04, applied by 05. No torch.

A recipe is a start head and steps with their parameters: what 04 kept, and 05 does per fold model.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from src.artifacts.files import read_json
from src.errors import UserError
from src.fusion.logit_adjustment import LOGIT_ADJUSTMENT
from src.fusion.ncm_fusion import NCM_FUSION
from src.fusion.step import Params, State, Step
from src.fusion.tau_norm import TAU_NORM
from src.fusion.temperature import TEMPERATURE
from src.logits import head_logits
from src.metrics import chunks

STEPS: dict[str, Step] = {
    step.name: step for step in (TAU_NORM, LOGIT_ADJUSTMENT, NCM_FUSION, TEMPERATURE)
}


def apply_steps(state: State, steps: Iterable[tuple[str, Params]]) -> State:
    """`state` after `steps`, pairs of name and parameters."""
    for name, params in steps:
        state = state.with_logits(STEPS[name].apply(state, params))
    return state


def load_recipe(path: Path, heads: Iterable[str] | None = None) -> dict:
    """posthoc.json, of which `head` and `steps` are the recipe.

    heads: those that there are. Errors: UserError for a recipe that needs other steps or heads.
    """
    needs = {"head": str, "steps": list, "steps/*/step": str, "steps/*/params": dict}
    recipe = read_json(path, needs)
    again = "Run `python 04_posthoc_calibrate.py` with the same --config again."
    if unknown := [step["step"] for step in recipe["steps"] if step["step"] not in STEPS]:
        raise UserError(f"{path}: there are no steps {unknown}, only {sorted(STEPS)}. {again}")
    params = [step["params"] for step in recipe["steps"]]
    needed = {recipe["head"], *(str(p["head"]) for p in params if "head" in p)}
    if heads is not None and (lacking := sorted(needed - set(heads))):
        raise UserError(f"{path}: needs the heads {lacking}, there are {sorted(heads)}. {again}")
    return recipe


def apply_recipe(
    recipe: dict,
    features: np.ndarray | None,
    heads: dict[str, tuple[str, dict[str, np.ndarray]]],
    stage1_logits: np.ndarray,
    counts: np.ndarray,
    start_logits: np.ndarray | None = None,
) -> np.ndarray:
    """Final logits [N, K] of one fold's model.

    recipe: posthoc.json as read, of which `head` and `steps` are used · features: [N, D] of that
    fold's stage 1 · heads: name → (kind, arrays) of that fold, `stage1` among them, as
    `src.tables.load_head` reads them · stage1_logits: [N, K]; returned as they are when the recipe
    starts at stage 1 and has no steps, since some networks' logits are not linear in the features ·
    counts: [K] images of each class, of all folds ·
    start_logits: [N, K] of the recipe's head, for a head that does not act on `features`.
    Errors: ValueError when the recipe needs a head that is not there.
    """
    start = recipe["head"]
    steps = [(step["step"], step["params"]) for step in recipe["steps"]]
    if start == "stage1" and not steps:
        return stage1_logits
    needed = {start} | {params["head"] for _, params in steps if "head" in params}
    lacking = sorted(needed - heads.keys() - {"stage1"})
    if lacking:
        raise ValueError(f"the recipe needs the heads {lacking}, there are {sorted(heads)}")
    out = np.empty_like(stage1_logits, dtype=np.float32)
    for rows in chunks(*stage1_logits.shape):
        f = None if features is None else features[rows]
        if start == "stage1":
            z = stage1_logits[rows]
        elif start_logits is not None:
            z = start_logits[rows]
        else:
            kind, arrays = heads[start]
            z = head_logits(f, arrays, kind)
        out[rows] = apply_steps(State(z, f, start, heads, counts), steps).logits
    return out
