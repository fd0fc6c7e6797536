"""Stage 4: which fusions and calibrations help, judged on images that their fit never saw.

Every start head is taken through the steps of the config in order; a step that does not help is
dropped. The head with the best cross-fitted metric is what 05 and 06 use as `posthoc`. Choosing
among a handful of heads by that number makes it very slightly optimistic; the steps' gains are not.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.artifacts.dataset import load_dataset
from src.artifacts.files import write_json, write_table
from src.artifacts.oof import optimism
from src.artifacts.predictions import Predictions, concatenate
from src.artifacts.work import RUNS, Work
from src.config.schema import Config
from src.fusion import STEPS
from src.metrics import summary
from src.posthoc.crossfit import Recipes, Trial, cross_fitted, no_steps, try_step
from src.posthoc.inputs import (
    Start,
    head_dir,
    head_names,
    input_files,
    load_all_heads,
    load_stage1,
    load_start,
    start_names,
)
from src.posthoc.results import facts, load_table, numbers, search_log, table_of, trial_row

OUTPUTS = ("posthoc.json", "search.csv", "table.csv", "oof.npz")


@dataclass(frozen=True)
class Tuned:
    """A start head after the search: what was tried, what is kept, and its cross-fitted score."""

    start: Start
    trials: list[Trial]
    recipes: Recipes
    score: float


def posthoc(config: Config, experiment: str, *, overwrite: bool = False) -> pd.DataFrame:
    """Search, judge and write runs/<dataset>/<experiment>/posthoc/.

    Returns what each step does, as in posthoc/table.csv: columns start (the head), step, kept, gain
    (cross-fitted; of the metric, for temperature of the NLL), params, reason and the scores of
    `src.metrics.summary`. Rows: every head as trained (step is empty), every step tried on it
    (on top of those kept before it), and at the end `final`. All scores are cross-fitted.
    Errors: UserError when folds are missing, or made from another folds.csv.
    """
    dataset = load_dataset(config.dataset)
    home = RUNS / config.dataset / experiment
    settings = {"posthoc": config.posthoc, "metric": config.metric}
    files = input_files(home, dataset, config)
    step = Work(home / "posthoc", settings, inputs=files, overwrite=overwrite)
    if step.finished():
        return load_table(step.directory / "table.csv")
    stage1 = load_stage1(home, dataset)
    heads = load_all_heads(home, dataset, config)
    bins = dataset.classes["bin"].to_numpy()
    rows, log, tuned = [], [], []
    for name in head_names(config):
        start = load_start(name, stage1, heads, home, dataset)
        rows.append({"start": name, "step": ""} | _scores(start, no_steps(start), bins))
        if name in start_names(config):
            tuned.append(_tune(start, config, bins, rows, log))
    best = min(tuned, key=lambda t: (-t.score, len(t.recipes[None])))  # ties: fewer steps
    pooled = _pooled(best, stage1)
    scores = summary(pooled.logits, pooled.label, bins)
    rows.append({"start": best.start.name, "step": "final"} | scores)
    reasons = optimism(head_dir(home, name) for name in head_names(config))
    table = table_of(rows)
    tried = [(t.start.name, trial) for t in tuned for trial in t.trials]
    tree = facts(best.start.name, best.recipes, tried, table, config.metric, reasons)
    write_json(step.directory / "posthoc.json", tree)
    write_table(step.directory / "search.csv", pd.DataFrame(log))
    write_table(step.directory / "table.csv", table)
    pooled.save(step.directory / "oof.npz")
    step.finish(OUTPUTS, numbers(scores), optimistic=bool(reasons), head=best.start.name)
    return load_table(step.directory / "table.csv")


def _tune(start: Start, config: Config, bins: np.ndarray, rows: list, log: list) -> Tuned:
    """Take one head through the steps; append to the table's rows and to the search's log."""
    recipes, trials, score = no_steps(start), [], rows[-1][config.metric]
    for name in config.posthoc.steps:
        trial = try_step(STEPS[name], start, recipes, config)
        scores = _scores(start, trial.recipes, bins) if trial.recipes else {}
        if trial.kept:
            recipes, score = trial.recipes, scores[config.metric]
        trials.append(trial)
        rows.append(trial_row(start.name, trial, scores))
        log += search_log(start.name, trial)
        print(f"{start.name} + {name}: {'kept' if trial.kept else 'dropped'}, {trial.reason}")
    return Tuned(start, trials, recipes, score)


def _scores(start: Start, recipes: Recipes, bins: np.ndarray) -> dict[str, float]:
    logits = cross_fitted(start, recipes)
    pooled = np.concatenate([logits[k] for k in start.states])
    return summary(pooled, np.concatenate([start.labels[k] for k in start.states]), bins)


def _pooled(best: Tuned, stage1: dict[int, Predictions]) -> Predictions:
    """The cross-fitted logits: what 06 selects on, so that its selection stays honest."""
    logits = cross_fitted(best.start, best.recipes)
    return concatenate([stage1[k].with_logits(z) for k, z in logits.items()])
