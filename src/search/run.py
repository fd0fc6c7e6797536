"""`--search` of 02 and 03: a study in a directory, from its settings to best.json.

Writes study.db, trials.csv after every trial, and at the end history.png, best.json and
manifest.json. What a trial is, is up to the stage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd
from accelerate import Accelerator

from src.artifacts.files import read_json, read_table, sha256, write_json, write_table
from src.artifacts.lock import locked
from src.artifacts.work import MANIFEST, Work
from src.config.search import Search
from src.errors import UserError
from src.metrics import sign
from src.plots.history import draw_history
from src.search.study import Objective, Worker, open_study, table, winner, work
from src.search.winner import BEST


@dataclass(frozen=True)
class Plan:
    """directory: of the search · spec: keys, trials, seed and pruner of the study · now: the
    config's own values by key · metric: what is scored · settings, inputs: of the `Step`"""

    directory: Path
    spec: Search
    now: dict
    metric: str
    settings: dict
    inputs: dict[str, Path]


def check_alone(accelerator: Accelerator) -> None:
    if accelerator.num_processes > 1:
        raise UserError(
            "--search: start the same command once per GPU instead (CUDA_VISIBLE_DEVICES=0, 1, …): "
            "each is a worker with trials of its own"
        )


def run_search(
    plan: Plan,
    overwrite: bool,
    run: Objective,
    judge: Callable[[dict], dict] = lambda values: {},
) -> pd.DataFrame:
    """Run trials until there are `plan.spec.trials`; returns them as a table.

    judge: the winner's values → more facts for best.json. Errors: UserError for another config in
    the same directory, or trials that all fail.
    """
    directory = plan.directory
    with Worker(directory) as worker:
        if overwrite and worker.others():
            raise UserError(f"{directory}: {worker.others()} still work on it; stop them first")
        step = Work(directory, plan.settings, plan.inputs, redo_on_new_inputs=False, shared=True)
        if overwrite:
            _clear(directory)
        if _finished(step, plan.spec.trials):
            numbers = ("trial", "score", "seconds")
            return _shown(read_table(directory / "trials.csv", numbers), plan.spec)
        about = {"settings": step.settings, "inputs": step.inputs}
        with locked(directory):
            study = open_study(directory, plan.spec, about, sign(plan.metric))
        step.check_settings(study.user_attrs["settings"], directory / "study.db")
        step.check_inputs(study.user_attrs["inputs"], directory / "study.db")
        work(study, plan.spec, plan.now, worker, run)
        with locked(directory):
            _finish(step, study, plan, judge)
        return _shown(table(study, plan.spec), plan.spec)


def _shown(rows: pd.DataFrame, spec: Search) -> pd.DataFrame:
    """The table as it is printed: values with three digits, however small."""
    digits = {
        k: rows[k].map(lambda v: f"{v:.3g}" if isinstance(v, float) else v) for k in spec.keys
    }
    return rows.assign(**digits).drop(columns=["worker"])


def _clear(directory: Path) -> None:
    """Everything but the locks of those who are there. The manifest first: then it is unfinished"""
    for name in (MANIFEST, BEST, "study.db", "trials.csv", "history.png"):
        (directory / name).unlink(missing_ok=True)
    for path in sorted((directory / "trials").glob("*/*")):
        path.unlink()


def _finished(step: Work, trials: int) -> bool:
    """A finished search goes on when more trials are asked for."""
    path = step.directory / MANIFEST
    if path.is_file() and read_json(path, {"trials": int})["trials"] < trials:
        step.check_settings(step.manifest()["settings"], path)
        step.check_inputs(step.manifest()["inputs"], path)
        path.unlink(missing_ok=True)
    return step.finished()


def _finish(step: Work, study: optuna.Study, plan: Plan, judge: Callable[[dict], dict]) -> None:
    """Write what the search found, unless another worker has."""
    if (step.directory / MANIFEST).is_file():
        return
    best, rows = winner(study), table(study, plan.spec)
    write_table(step.directory / "trials.csv", rows)
    draw_history(rows, plan.spec.keys, plan.metric, step.directory / "history.png")
    found = {
        "values": best.params,
        "metric": plan.metric,
        "score": best.value,
        "trial": best.number,
        "trials": len(rows),
        "folds.csv": sha256(plan.inputs["folds.csv"]),
    }
    write_json(step.directory / BEST, found | judge(best.params))
    step.finish(["trials.csv", "history.png", BEST], {plan.metric: best.value}, trials=len(rows))
