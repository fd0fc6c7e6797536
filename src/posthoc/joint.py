"""The joint search: the parameters of all steps of a head at once, not one step after the other.

The chain (crossfit.py) fixes each step before it looks at the next, so two steps that only help
together, or undo each other, are never seen together. Here a trial is one whole recipe: for each
step either to leave it out or one of its candidates, and for a step that fits itself whether it is
there. Optuna's TPE (Bergstra et al., NeurIPS 2011) proposes trials; the chain's recipe comes first.

Nested: for each fold left out there is a study of its own, which sees the other folds and nothing
else, and whose winner is applied to the fold left out; the pooled result is what the judge compares
with the chain's. Inside a study, what fits itself is fitted on the study's folds but one and scored
on that one. Studies lie in posthoc/search/, and what one that was stopped had scored is not scored
again.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import optuna

from src.artifacts.files import read_json, write_json
from src.artifacts.work import digest
from src.config.posthoc import JointSearch
from src.config.schema import Config
from src.fusion import apply_steps
from src.fusion.step import Params, Step, Unfit
from src.fusion.store import fingerprint
from src.metrics import OUTCOMES, metric_of, paired_gain, sign
from src.posthoc.crossfit import Recipe, Recipes, Trial, judge, transformed
from src.posthoc.inputs import Start

NAME = "joint"  # of the trial, where others have their step's
STUDIES = "search"  # directory below posthoc/
SECONDS = 5  # between two times that scores are written
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass
class Space:
    """What trials choose from: for each step the number of a candidate, from 1; 0 leaves it out.

    A step that fits itself has the numbers 0 and 1. Outcomes are remembered by recipe and fold, so
    what studies have in common is done once.
    """

    start: Start
    steps: list[Step]
    metric: str
    _known: dict = field(default_factory=dict)
    _fitted: dict = field(default_factory=dict)

    def __post_init__(self):
        self.steps = [
            step
            for step in self.steps
            if not any(step.refuses(state) for state in self.start.states.values())
        ]
        any_state = next(iter(self.start.states.values()))
        self.candidates = {step.name: step.options(any_state) for step in self.steps}

    def sizes(self) -> dict[str, int]:
        """How many candidates each step has."""
        sizes = {name: 1 if c is None else len(c) for name, c in self.candidates.items()}
        return {name: size for name, size in sizes.items() if size}

    def values_of(self, recipe: Recipe) -> dict[str, int]:
        """The trial that is this recipe."""
        found = dict.fromkeys(self.candidates, 0)
        for name, params in recipe:
            if name in found:
                options = self.candidates[name]
                found[name] = 1 if options is None else 1 + _place(params, options)
        return found

    def recipe(self, values: dict[str, int], folds: tuple[int, ...]) -> Recipe:
        """The trial as a recipe; what fits itself is fitted on `folds`, behind what precedes it."""
        made: Recipe = ()
        for step in self.steps:
            if not (number := values.get(step.name, 0)):
                continue
            options = self.candidates[step.name]
            params = self._fit(step, made, folds) if options is None else options[number - 1]
            made = made if params is None else (*made, (step.name, params))
        return made

    def _fit(self, step: Step, before: Recipe, folds: tuple[int, ...]) -> Params | None:
        key = (step.name, fingerprint(before), folds)
        if key not in self._fitted:
            states = [transformed(self.start.states[k], before) for k in folds]
            try:
                self._fitted[key] = step.fit(states, [self.start.labels[k] for k in folds])
            except Unfit:
                self._fitted[key] = None
        return self._fitted[key]

    def fits(self, values: dict[str, int]) -> bool:
        return any(values.get(n) and options is None for n, options in self.candidates.items())

    def outcomes(self, recipe: Recipe, fold: int) -> np.ndarray:
        """[n] of what is scored in one fold."""
        key = (fingerprint(recipe), fold)
        if key not in self._known:
            if metric_of(self.metric).wide:  # as large as the logits: those of one trial alone
                self._known.clear()
            self._known[key] = np.concatenate(
                [
                    OUTCOMES[self.metric](shared(apply_steps(state, recipe).logits), labels)
                    for state, shared, labels in self.start.parts(fold)
                ]
            )
        return self._known[key]

    def score(self, values: dict[str, int], folds: tuple[int, ...]) -> float:
        """Of a trial on some folds, larger is better."""
        fits, parts = self.fits(values), []
        for fold in folds:
            others = tuple(k for k in folds if k != fold) if fits and len(folds) > 1 else folds
            parts.append(self.outcomes(self.recipe(values, others), fold))
        found = self.start.score(self.metric, np.concatenate(parts), folds)
        return sign(self.metric) * found


def try_jointly(
    start: Start, steps: list[Step], chain: Recipes, config: Config, directory: Path
) -> Trial:
    """Search all steps at once, and judge the winners against the chain's recipes.

    chain: as `src.posthoc.crossfit.try_step` left them · directory: of the studies of this head
    """
    space = Space(start, steps, config.metric)
    if not space.sizes():
        return Trial(NAME, False, "no step of posthoc.steps can act on this head")
    folds, found = tuple(start.states), {}
    for left_out in [*folds, None]:  # all folds last: its study is what is told of
        seen = tuple(k for k in folds if k != left_out)
        path = directory / f"{'all' if left_out is None else left_out}.json"
        study = _study(space, space.values_of(chain[left_out]), seen, config.posthoc.search, path)
        found[left_out] = space.recipe(study.best_params, seen)
    searched = [(t.params, sign(config.metric) * t.value) for t in study.get_trials(deepcopy=False)]
    labels = start.scored(folds)
    before, after = (
        np.concatenate([space.outcomes(recipes[k], k) for k in folds]) for recipes in (chain, found)
    )
    by = (config.metric, start.target)
    gain = paired_gain(before, after, labels, start.num_classes, *by)
    same = fingerprint(found[None]) == fingerprint(chain[None])
    kept, reason = judge(None if same else {}, gain, config, "the chain's own recipe is the best")
    scores = [start.score(config.metric, x, folds) for x in (before, after)]
    choices = {left_out: dict(recipe) for left_out, recipe in found.items()}
    return Trial(NAME, kept, reason, config.metric, *scores, gain, choices, searched, found)


@dataclass
class Scores:
    """Of the trials of one study, in a file: what was scored before a stop is not scored again.

    Proposals depend on the seed and on scores alone, so a study that is started again proposes the
    same trials and finds their scores here.
    """

    path: Path
    known: dict[str, float] = field(default_factory=dict)
    saved: float = field(default_factory=time.monotonic)

    def of(self, values: dict[str, int], score: Callable[[], float]) -> float:
        key = json.dumps(values)
        if key not in self.known:
            self.known[key] = score()
            if time.monotonic() - self.saved > SECONDS:
                self.save()
        return self.known[key]

    def save(self) -> None:
        write_json(self.path, self.known)
        self.saved = time.monotonic()


def _study(
    space: Space, first: dict[str, int], folds: tuple[int, ...], search: JointSearch, path: Path
) -> optuna.Study:
    """The study on some folds, finished; `first` is the first trial, no step at all the second."""
    sampler = optuna.samplers.TPESampler(seed=search.seed)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    sizes = space.sizes()
    for values in (first, dict.fromkeys(sizes, 0)):
        study.enqueue_trial({name: values[name] for name in sizes}, skip_if_exists=True)
    scores = Scores(path, read_json(path) if path.is_file() else {})
    try:
        for _ in range(search.trials):
            trial = study.ask()
            values = {name: trial.suggest_int(name, 0, size) for name, size in sizes.items()}
            study.tell(trial, scores.of(values, partial(space.score, values, folds)))
    finally:
        scores.save()
    return study


def studies_of(posthoc: Path, settings: object, inputs: Iterable[tuple[str, str]]) -> Path:
    """Directory of the studies for these settings and input files, name and sha256 each; those of
    others are removed."""
    home = posthoc / STUDIES
    own = home / digest({"settings": settings, "inputs": sorted(inputs)})[:12]
    for path in home.glob("*"):
        if path != own:
            shutil.rmtree(path)
    return own


def _place(params: Params, options: list[Params]) -> int:
    same = fingerprint(params)
    return next(i for i, option in enumerate(options) if fingerprint(option) == same)
