"""Stage 4: which fusions and calibrations help, judged on images that their fit never saw.

Every start head is taken through the steps of the config in order; a step is kept where its
cross-fitted gain passes the section `judge`. One head at a time is in memory, beside stage 1. The
head with the best cross-fitted metric is what 05 and 06 use as `posthoc`. Choosing among a handful
of heads by that number makes it very slightly optimistic; the steps' gains are not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from src import cli
from src.artifacts.dataset import Dataset, load_dataset
from src.artifacts.files import write_table
from src.artifacts.marks import marks
from src.artifacts.oof import head_dir, load_head_folds, optimism
from src.artifacts.parts import caveat, in_parts
from src.artifacts.predictions import stack
from src.artifacts.space import space
from src.artifacts.target_prior import load_target_prior
from src.artifacts.trained import trained_config
from src.artifacts.work import RUNS, Work
from src.config.names import STAGE1
from src.config.schema import Config
from src.fusion import build_steps
from src.fusion.decision import decided
from src.fusion.step import Step
from src.fusion.store import save_recipe
from src.metrics import outcomes_of, pooled, sign
from src.posthoc.crossfit import Recipes, Trial, cross_fitted, no_steps, try_step
from src.posthoc.inputs import (
    Start,
    check_columns,
    input_files,
    load_start,
    start_names,
)
from src.posthoc.joint import studies_of, try_jointly
from src.posthoc.results import facts, load_table, numbers, search_log, table_of, trial_row
from src.posthoc.words import head_in_words, refusals_in_words
from src.progress import each

ON_TARGET = "on_target"  # the metric under the target prior, where there is one
TABLES = ("search.csv", "table.csv", "oof.npz")
Attempt = Callable[[Recipes, Config], Trial]  # something to be put on top of recipes


@dataclass(frozen=True)
class Tuned:
    """A start head after the search: what was tried, what is kept, and its cross-fitted scores."""

    name: str
    trials: list[Trial]
    recipes: Recipes
    scores: dict[str, float]


def posthoc(
    config: Config, experiment: str, *, overwrite: bool = False, folds: list[str] = ()
) -> pd.DataFrame:
    """Search, judge and write runs/<dataset>/<experiment>/posthoc/.

    Returns what each step does, as in posthoc/table.csv: columns start (the head), step, kept, gain
    (cross-fitted; of the metric, for temperature of the NLL), gain_low and gain_high (its 95 %
    interval), params, reason and the scores of `src.metrics.summary`. Rows: every head as trained
    (step is empty), every step tried on it (on top of those kept before it), and at the end
    `final`. All scores are cross-fitted.
    folds: numbers; none: all. Errors: UserError when they are missing, or made from another
    folds.csv.
    """
    dataset = load_dataset(config.dataset).choose(folds).numbered("04")
    home = RUNS / config.dataset / experiment
    config = trained_config(config, home)
    settings = {"posthoc": config.posthoc, "metric": config.metric, "judge": config.judge}
    settings |= {"target_prior": config.target_prior}
    if config.data.observation is not None:
        settings |= {"observation": config.data.observation, "observations": config.observations}
    steps = build_steps(config)
    check_columns(steps, dataset)
    files = input_files(home, dataset, config)
    work = Work(home / "posthoc", settings, inputs=files, overwrite=overwrite)
    if work.finished():
        return load_table(work.directory / "table.csv")
    stage1 = in_parts(load_head_folds(home, STAGE1, dataset), dataset)
    bins = dataset.classes["bin"].to_numpy()
    rows, log, tuned = [], [], []
    studies = studies_of(work.directory, work.settings, work.inputs.items())
    for name in each(config.head_names, "calibration", "heads"):
        asked = steps if name in start_names(config) else []
        head = load_start(name, steps, stage1, home, dataset, config)
        tuned.append(_tune(head, asked, config, bins, rows, log, studies / name))
        del head  # before the next one is loaded
    for line in refusals_in_words({t.name: t.trials for t in tuned}):
        cli.say(line)
    ends = [t for t in tuned if t.name in start_names(config)]
    by = config.metric if config.target_prior is None else ON_TARGET
    best = min(ends, key=lambda t: (-sign(config.metric) * t.scores[by], len(t.recipes[None])))
    rows.append({"start": best.name, "step": "final"} | best.scores)
    reasons = optimism(head_dir(home, name) for name in config.head_names)
    table = table_of(rows)
    tried = [(t.name, trial) for t in tuned for trial in t.trials]
    tree = facts(best.name, best.recipes, tried, table, config, reasons)
    if config.target_prior is not None:
        tree["target"] = load_target_prior(config, dataset)
    start = load_start(best.name, steps, stage1, home, dataset, config)
    made = (logits for _, logits in cross_fitted(start, best.recipes))
    stack([stage1[k] for k in start.states], made).save(work.directory / "oof.npz")
    tree["decision"] = _decision(start, best.recipes, config)
    tree |= only(dataset)
    outputs = save_recipe(work.directory, tree)
    write_table(work.directory / "search.csv", pd.DataFrame(log))
    write_table(work.directory / "table.csv", table)
    scores = numbers(best.scores)
    work.finish(
        [*outputs, *TABLES], scores, optimistic=bool(reasons), head=best.name,
        folds=dataset.folds, **marks(home),
    )  # fmt: skip
    return load_table(work.directory / "table.csv")


def _tune(
    start: Start,
    steps: list[Step],
    config: Config,
    bins: np.ndarray,
    rows: list,
    log: list,
    studies: Path,
) -> Tuned:
    """Take one head through the steps; append to the table's rows and to the search's log."""
    recipes, trials = no_steps(start), []
    plain = kept = _scores(start, recipes, bins, config.metric)
    rows.append({"start": start.name, "step": ""} | kept)
    for attempt in _attempts(start, steps, config, studies):
        trial = attempt(recipes, config)
        scores = _scores(start, trial.recipes, bins, config.metric) if trial.recipes else {}
        if trial.kept:
            recipes, kept = trial.recipes, scores
        trials.append(trial)
        rows.append(trial_row(start.name, trial, scores))
        log += search_log(start.name, trial)
    if trials:
        scores = (plain[config.metric], kept[config.metric])
        cli.say(head_in_words(start.name, *scores, trials, config.metric))
    return Tuned(start.name, trials, recipes, kept)


def _attempts(start: Start, steps: list[Step], config: Config, studies: Path) -> list[Attempt]:
    """One step after the other. With posthoc.search, what is scored by the metric is also searched
    at once, before what is scored otherwise (temperature) is tried."""
    searched = [step for step in steps if step.scored_by == "metric"]
    if not (config.posthoc.search.trials and searched):
        return [partial(try_step, step, start) for step in steps]
    return [
        *(partial(try_step, step, start) for step in searched),
        partial(try_jointly, start, searched, directory=studies),
        *(partial(try_step, step, start) for step in steps if step not in searched),
    ]


def _scores(start: Start, recipes: Recipes, bins: np.ndarray, metric: str) -> dict[str, float]:
    found = [
        outcomes_of(start.shared(k, logits), start.scored([k]), metric)
        for k, logits in cross_fitted(start, recipes)
    ]
    whole = pooled(found)
    scores = whole.summary(start.scored(start.states), bins, metric)
    if start.target is not None:
        scores[ON_TARGET] = start.score(metric, whole.of(metric), start.states)
    return scores


def _decision(start: Start, recipes: Recipes, config: Config) -> dict:
    """What 06 would do with these logits alone to make labels of them, without the parameters."""
    sizes = [len(start.scored([k])) for k in start.states]
    fold, labels = np.repeat(list(start.states), sizes), start.scored(start.states)

    def logits() -> np.ndarray:
        out, first = space((len(labels), start.num_classes)), 0
        for k, part in cross_fitted(start, recipes):
            part = start.shared(k, part)
            out[first : first + len(part)] = part
            first += len(part)
        return out

    facts = decided(config, logits, labels, fold, start.target).facts()
    return {key: value for key, value in facts.items() if key != "params"}


def only(dataset: Dataset) -> dict:
    """For posthoc.json, where some folds stand for all: that they do. Of one alone nothing was
    chosen without it, so its own network goes without steps where that is asked for."""
    if not (note := caveat(dataset)):
        return {}
    alone = len(dataset.folds) == 1
    return {"caveat": note} | ({"per_fold": {str(dataset.folds[0]): []}} if alone else {})
