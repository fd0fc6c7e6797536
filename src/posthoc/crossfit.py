"""The search: parameters chosen on out-of-fold logits, gains measured on folds not chosen on.

For each fold k the whole chain of steps is chosen on the other folds and applied to fold k; the
pooled result is the cross-fitted one. `None` stands for the chain that is chosen on all folds, the
one that predicts the test set. What is kept per candidate is one outcome per image (src/metrics)
and logits exist for one chunk of rows at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from src.artifacts.space import space
from src.config.schema import Config
from src.fusion import apply_steps
from src.fusion.step import Params, State, Step, Unfit
from src.fusion.store import fingerprint
from src.metrics import (
    OUTCOMES,
    PROBABILITIES,
    Gain,
    chunks,
    metric_of,
    paired_gain,
    sign,
)
from src.posthoc.inputs import Start

Recipe = tuple[tuple[str, Params], ...]  # names and parameters of steps, in order
Recipes = dict[int | None, Recipe]  # by the fold that was left out


@dataclass(frozen=True)
class Trial:
    """One step tried on one start head.

    scored_by: the metric, or nll · before, after: cross-fitted scores · gain: of after ·
    choices: parameters by fold left out (None: on all folds), None where leaving the step out was
    best · searched: candidates and their scores on all folds, on which they were chosen
    """

    step: str
    kept: bool
    reason: str
    scored_by: str = ""
    before: float = float("nan")
    after: float = float("nan")
    gain: Gain = Gain()
    choices: dict[int | None, Params | None] = field(default_factory=dict)
    searched: list[tuple[Params | None, float]] = field(default_factory=list)
    recipes: Recipes = field(default_factory=dict)


@dataclass(frozen=True)
class _Choice:
    params: Params | None
    before: np.ndarray  # outcomes of the fold left out, without and with the step
    after: np.ndarray
    searched: list[tuple[Params | None, float]]


def no_steps(start: Start) -> Recipes:
    return {left_out: () for left_out in [*start.states, None]}


def try_step(step: Step, start: Start, recipes: Recipes, config: Config) -> Trial:
    """Choose and judge one step on top of `recipes`."""
    reasons = [step.refuses(state) for state in start.states.values()]
    if any(reasons):
        return Trial(step.name, False, next(filter(None, reasons)))
    judges = metric_of(config.metric).of == PROBABILITIES  # of calibration, too
    name = config.metric if step.scored_by == "metric" or judges else step.scored_by
    chosen: dict[int | None, _Choice] = {}
    for upstream, left_outs in _distinct(recipes):
        choose = _choose_on_large_grid if metric_of(name).wide else _choose_on_grid
        choose = _choose_by_fit if step.candidates() is None else choose
        try:
            chosen |= choose(step, start, upstream, left_outs, name)
        except Unfit as reason:
            return Trial(step.name, False, str(reason))
    labels = start.scored(start.states)
    before, after = (
        np.concatenate([getattr(chosen[k], part) for k in start.states])
        for part in ("before", "after")
    )
    gain = paired_gain(before, after, labels, start.num_classes, name, start.target)
    kept, reason = judge(chosen[None].params, gain, config)
    choices = {left_out: choice.params for left_out, choice in chosen.items()}
    longer = {
        left_out: _extended(upstream, step.name, choices[left_out])
        for left_out, upstream in recipes.items()
    }
    searched = chosen[None].searched
    scores = [start.score(name, x, start.states) for x in (before, after)]
    return Trial(step.name, kept, reason, name, *scores, gain, choices, searched, longer)


def cross_fitted(start: Start, recipes: Recipes) -> Iterator[tuple[int, np.ndarray]]:
    """Fold by fold its logits [n, K], with the steps that were chosen on the other folds."""
    return ((k, transformed(state, recipes[k]).logits) for k, state in start.states.items())


def _extended(recipe: Recipe, name: str, params: Params | None) -> Recipe:
    return recipe if params is None else (*recipe, (name, params))


def judge(
    final: Params | None,
    gain: Gain,
    config: Config,
    otherwise: str = "no candidate beats leaving it out on the out-of-fold images",
) -> tuple[bool, str]:
    """Whether what was chosen on all folds is kept, and why; None: nothing was, for `otherwise`."""
    if final is None:
        return False, otherwise
    fails = gain.fails(config.judge)
    return fails is None, f"cross-fitted gain {gain}" + (f" {fails}" if fails else "")


def _choose_on_grid(step: Step, start, upstream, left_outs, name) -> dict:
    """Score every candidate once per image, then choose for each fold left out."""
    candidates = step.options(next(iter(start.states.values())))
    outcomes = {k: _outcomes(step, candidates, start, k, upstream, name) for k in start.states}
    options: list[Params | None] = [None, *candidates]
    chosen = {}
    for left_out in left_outs:
        others = [k for k in start.states if k != left_out]
        scores = [
            start.score(name, np.concatenate([outcomes[k][i] for k in others]), others)
            for i in range(len(options))
        ]
        best = int(np.argmax(sign(name) * np.array(scores)))  # ties: nearest to leaving it out
        before, after = (
            (None, None) if left_out is None else (outcomes[left_out][0], outcomes[left_out][best])
        )
        searched = list(zip(options, scores, strict=True))
        chosen[left_out] = _Choice(options[best], before, after, searched)
    return chosen


def _choose_on_large_grid(step: Step, start, upstream, left_outs, name) -> dict:
    """The same where outcomes are as large as the logits: those of one candidate at a time."""

    def made(option: Params | None, k: int) -> np.ndarray:
        options = [] if option is None else [option]
        return _outcomes(step, options, start, k, upstream, name)[-1].copy()

    options = [None, *step.options(next(iter(start.states.values())))]
    scores: dict[int | None, list[float]] = {left_out: [] for left_out in left_outs}
    for option in options:
        outcomes = {k: made(option, k) for k in start.states}
        for left_out, found in scores.items():
            others = [k for k in start.states if k != left_out]
            pooled = np.concatenate([outcomes[k] for k in others])
            found.append(start.score(name, pooled, others))
    chosen = {}
    for left_out, found in scores.items():
        best = options[int(np.argmax(sign(name) * np.array(found)))]
        pair = [None if left_out is None else made(option, left_out) for option in (None, best)]
        chosen[left_out] = _Choice(best, *pair, list(zip(options, found, strict=True)))
    return chosen


def _outcomes(step: Step, candidates, start: Start, fold: int, upstream: Recipe, name: str):
    """Outcomes without the step and of each candidate, [1 + G, n], of what is scored in a fold."""
    parts = []
    for state, shared, labels in start.parts(fold):
        part = apply_steps(state, upstream)
        found = [OUTCOMES[name](shared(part.logits), labels)]
        for params in candidates:
            found.append(OUTCOMES[name](shared(step.apply(part, params)), labels))
        parts.append(np.stack(found))
    return np.concatenate(parts, axis=1)


def _choose_by_fit(step: Step, start, upstream, left_outs, name) -> dict:
    """Let the step fit itself on the other folds' states, for each fold left out."""
    states = {k: transformed(state, upstream) for k, state in start.states.items()}
    behind, chosen = replace(start, states=states), {}
    for left_out in left_outs:
        others = [k for k in states if k != left_out]
        params = step.fit([states[k] for k in others], [start.labels[k] for k in others])
        scored = list(states) if left_out is None else [left_out]
        before, after = np.hstack([_outcomes(step, [params], behind, k, (), name) for k in scored])
        searched = [
            (option, start.score(name, outcome, scored))
            for option, outcome in ((None, before), (params, after))
        ]
        chosen[left_out] = _Choice(params, before, after, searched)
    return chosen


def transformed(state: State, recipe: Recipe) -> State:
    """The state after the recipe's steps, made in chunks."""
    if not recipe:
        return state
    out = space(state.logits.shape)
    for rows in chunks(*state.logits.shape):
        out[rows] = apply_steps(state.rows(rows), recipe).logits
    return state.with_logits(out)


def _distinct(recipes: Recipes) -> list[tuple[Recipe, list[int | None]]]:
    """Equal recipes share their work: each with the folds left out that have it."""
    groups: dict[tuple, tuple[Recipe, list]] = {}
    for left_out, recipe in recipes.items():
        groups.setdefault(fingerprint(recipe), (recipe, []))[1].append(left_out)
    return list(groups.values())
