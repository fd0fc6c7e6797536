"""Fusion and calibration of logits after training; fitted by 04, applied by 05. No torch.

A recipe is a start head and steps with their parameters: what 04 kept, and 05 does per fold model.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from src.artifacts.space import space
from src.config.schema import Config
from src.errors import UserError
from src.fusion.asm import ASM
from src.fusion.bin_temperature import BinTemperature
from src.fusion.class_scales import ClassScales
from src.fusion.fusion import Fusion
from src.fusion.llw import LLW
from src.fusion.logit_adjustment import LogitAdjustment
from src.fusion.max_norm import MaxNorm
from src.fusion.metadata_prior import MetadataPrior
from src.fusion.step import Head, Params, State, Step
from src.fusion.tau_norm import TauNorm
from src.fusion.temperature import Temperature
from src.fusion.vector_scaling import VectorScaling
from src.metrics import chunks

STEPS: dict[str, type[Step]] = {
    "tau_norm": TauNorm,
    "max_norm": MaxNorm,
    "class_scales": ClassScales,
    "logit_adjustment": LogitAdjustment,
    "fusion": Fusion,
    "ncm_fusion": Fusion,
    "llw": LLW,
    "asm": ASM,
    "metadata_prior": MetadataPrior,
    "temperature": Temperature,
    "bin_temperature": BinTemperature,
    "vector_scaling": VectorScaling,
}


def build_steps(config: Config) -> list[Step]:
    """The steps of `posthoc.steps`, in order."""
    return [STEPS[section.name](section, config) for section in config.posthoc.steps]


def apply_steps(state: State, steps: Iterable[tuple[str, Params]]) -> State:
    """`state` after `steps`, pairs of name and parameters."""
    for name, params in steps:
        state = state.with_logits(STEPS[name].apply(state, params))
    return state


def check_recipe(recipe: dict, heads: Iterable[str], origin: Path) -> None:
    """Errors: UserError for a recipe that needs other steps or heads than there are."""
    again = "Run `python 04_posthoc_calibrate.py` with the same --config again."
    if unknown := [step["step"] for step in recipe["steps"] if step["step"] not in STEPS]:
        raise UserError(f"{origin}: there are no steps {unknown}, only {sorted(STEPS)}. {again}")
    if lacking := sorted(heads_of(recipe) - set(heads)):
        raise UserError(f"{origin}: needs the heads {lacking}, there are {sorted(heads)}. {again}")


def heads_of(recipe: dict) -> set[str]:
    """Names of the heads that a recipe needs."""
    params = [step["params"] for step in recipe["steps"]]
    return {recipe["head"], *(str(p["head"]) for p in params if "head" in p)}


def apply_recipe(
    recipe: dict,
    features: np.ndarray | None,
    heads: dict[str, Head],
    given: dict[str, np.ndarray],
    counts: np.ndarray,
    columns: dict[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Final logits [N, K] of one fold's model.

    recipe: as `src.fusion.store.load_recipe` reads it, of which `head`, `steps` and, where it is
    there, `target` are used ·
    features: [N, D] of that fold's stage 1 · heads: name → (kind, arrays) of that fold, as
    `src.artifacts.heads.load_head` reads them · given: name → logits [N, K] of that fold's heads
    that are known already; those of a head that does not act on `features` must be ·
    counts: [K] images of each class, of all folds · columns: name → text [N] of data.columns.
    Errors: UserError when the recipe needs a head that is not there.
    """
    start = recipe["head"]
    steps = [(step["step"], step["params"]) for step in recipe["steps"]]
    if not steps and start in given:
        return given[start]
    images = len(next(iter(given.values())) if features is None else features)
    blank, target = np.empty((images, 0), np.float32), recipe.get("target")
    columns = columns or {}
    whole = State(blank, features, start, heads, counts, given, columns, target=target)
    out = space((images, len(counts)))
    for rows in chunks(*out.shape):
        state = whole.rows(rows)
        out[rows] = apply_steps(state.with_logits(state.logits_of(start)), steps).logits
    return out
