"""`02_train_stage1.py --search`: settings of stage 1 that do best on a split inside one fold's
training images (weight decay, as in Alshammari et al., CVPR 2022, by default).

The outer held-out fold is never looked at. A trial is a short training on about 80 % of the rest,
scored with evaluation transforms on the other 20 %. The values are drawn by a tree-structured
Parzen estimator (Bergstra et al. 2011), the config's own come first.
"""

from pathlib import Path

import optuna
import pandas as pd
from accelerate import Accelerator
from optuna.trial import Trial

from src.artifacts import (
    MANIFEST,
    RUNS,
    Step,
    read_json,
    read_table,
    sha256,
    write_json,
    write_table,
)
from src.config import dump_config, flatten, with_values
from src.errors import UserError
from src.report.search import draw_history
from src.runtime import start
from src.schema import Config
from src.search_result import BEST
from src.tables import Dataset, load_dataset
from src.training.checkpoint import NAME as CHECKPOINT
from src.training.checkpoint import load_checkpoint
from src.training.inner_split import inner_split
from src.training.job import Fold, build_trainer
from src.training.stage1 import fit
from src.training.study import Worker, locked, open_study, origin, table, winner, work

SETTINGS = ("model", "train", "metric", "seed")
COUNTED_IN_EPOCHS = (
    "train.warmup_epochs",
    "train.mixing.off_epochs",
    "model.bbn.t_max",
    "model.kt.start_epoch",
)


def search(config: Config, experiment: str, overwrite: bool) -> pd.DataFrame:
    """Run trials until there are `search.trials`; returns them as a table.

    Writes search/: study.db, trials.csv, trials/<n>/metrics.csv, and at the end history.png,
    best.json and manifest.json. Errors: UserError for a search that makes no sense, another
    config in the same directory, or trials that all fail.
    """
    data = load_dataset(config.dataset)
    _check(config, data)
    directory = RUNS / config.dataset / experiment / "search"
    accelerator = start(config.train.precision)
    if accelerator.num_processes > 1:
        raise UserError(
            "--search: start the same command once per GPU instead (CUDA_VISIBLE_DEVICES=0, 1, …): "
            "each is a worker with trials of its own"
        )
    with Worker(directory) as worker:
        if overwrite and worker.others():
            raise UserError(f"{directory}: {worker.others()} still work on it; stop them first")
        step = _step(config, data, directory)
        if overwrite:
            _clear(directory)
        if _finished(step, config):
            numbers = ("trial", "score", "seconds")
            return _shown(read_table(directory / "trials.csv", numbers), config)
        now = flatten(dump_config(config))
        about = {"settings": step.settings, "inputs": step.inputs}
        with locked(directory):
            study = open_study(directory, proxy(config).search, about)
        step.check_settings(study.user_attrs["settings"], directory / "study.db")
        step.check_inputs(study.user_attrs["inputs"], directory / "study.db")
        inner = inner_split(data, config.search)

        def run(trial: Trial, values: dict) -> float:
            return run_trial(config, inner, directory, accelerator, trial, values)

        work(study, config.search, now, worker, run)
        with locked(directory):
            _finish(step, study, config, data)
        return _shown(table(study, config.search), config)


def _shown(rows: pd.DataFrame, config: Config) -> pd.DataFrame:
    """The table as it is printed: values with three digits, however small."""
    keys = list(config.search.keys)
    digits = {k: rows[k].map(lambda v: f"{v:.3g}" if isinstance(v, float) else v) for k in keys}
    return rows.assign(**digits).drop(columns=["worker"])


def _check(config: Config, data: Dataset) -> None:
    spec, pretrained = config.search, config.model.pretrained
    if spec.fold not in data.folds:
        raise UserError(f"search.fold: {spec.fold} is none of the folds {data.folds}")
    if spec.epochs is not None and "train.epochs" in spec.keys:
        raise UserError("search.keys: train.epochs is set by search.epochs; remove one of them")
    if isinstance(pretrained, str) and pretrained.startswith("experiment:"):
        name = pretrained.removeprefix("experiment:")
        if name.rpartition("/")[0] in ("", config.dataset):
            raise UserError(
                f"model.pretrained={pretrained}: that network has seen the images on which trials "
                "are scored. Search from other weights"
            )


def _step(config: Config, data: Dataset, directory: Path) -> Step:
    spec = {k: v for k, v in dump_config(config.search).items() if k not in ("trials", "use")}
    settings = {"search": spec} | {key: getattr(config, key) for key in SETTINGS}
    inputs = {name: data.directory / name for name in ("folds.csv", "classes.csv")}
    return Step(directory, settings, inputs, redo_on_new_inputs=False)


def _clear(directory: Path) -> None:
    """Everything but the locks of those who are there. The manifest first: then it is unfinished"""
    for name in (MANIFEST, BEST, "study.db", "trials.csv", "history.png"):
        (directory / name).unlink(missing_ok=True)
    for path in sorted((directory / "trials").glob("*/*")):
        path.unlink()


def _finished(step: Step, config: Config) -> bool:
    """A finished search goes on when more trials are asked for."""
    path = step.directory / MANIFEST
    if path.is_file() and read_json(path)["trials"] < config.search.trials:
        step.check_settings(step.manifest()["settings"], path)
        step.check_inputs(step.manifest()["inputs"], path)
        path.unlink(missing_ok=True)
    return step.finished()


def _finish(step: Step, study: optuna.Study, config: Config, data: Dataset) -> None:
    """Write what the search found, unless another worker has."""
    if (step.directory / MANIFEST).is_file():
        return
    best, spec = winner(study), config.search
    metric = spec.metric or config.metric
    rows = table(study, spec)
    write_table(step.directory / "trials.csv", rows)
    draw_history(rows, spec, metric, step.directory / "history.png")
    write_json(
        step.directory / BEST,
        {
            "values": best.params,
            "metric": metric,
            "score": best.value,
            "trial": best.number,
            "trials": len(rows),
            "folds.csv": sha256(data.directory / "folds.csv"),
        },
    )
    step.finish(["trials.csv", "history.png", BEST], {metric: best.value}, trials=len(rows))


# ---- one trial ---------------------------------------------------------------------------------


def run_trial(
    config: Config,
    inner: Dataset,
    directory: Path,
    accelerator: Accelerator,
    trial: Trial,
    values: dict,
) -> float:
    """Train with `values` on the inner split; returns the score of the weights that are kept.

    A trial whose worker was killed goes on after its last epoch. A training that diverges or does
    not fit in memory counts as pruned, and says why. Errors: TrialPruned.
    """
    spec, metric = config.search, config.search.metric or config.metric
    shown = ", ".join(f"{key} = {value!r}" for key, value in values.items())
    print(f"trial {trial.number}: {shown}", flush=True)
    home = directory / "trials" / f"{origin(trial):03d}"

    def report(row: dict) -> None:
        if metric in row:
            trial.report(row[metric], row["epoch"])
            if trial.should_prune():
                raise optuna.TrialPruned

    try:
        tried = with_values(proxy(config), values, "search")
        job = Fold(tried, inner, spec.fold, home, accelerator)
        state = {"settings": dump_config(job.config.train), "inputs": {}}
        checkpoint = load_checkpoint(home)
        for row in () if checkpoint is None else checkpoint["history"]:
            report(row)
        history, _ = fit(job, *build_trainer(job), state, checkpoint, report)
    except UserError as error:
        trial.set_user_attr("note", str(error))
        print(f"trial {trial.number}: {error}", flush=True)
        raise optuna.TrialPruned from error
    finally:
        accelerator.free_memory()
    (home / CHECKPOINT).unlink(missing_ok=True)
    rows = [row for row in history if metric in row]
    if job.config.train.select == "best":
        return max(rows, key=lambda row: row[config.metric])[metric]
    return rows[-1][metric]


def proxy(config: Config) -> Config:
    """The config with the epochs of a trial; what counts in epochs shrinks in proportion."""
    epochs, now = config.search.epochs or config.train.epochs, flatten(dump_config(config))
    values: dict = {"train.epochs": epochs, "search.epochs": epochs}
    for key in COUNTED_IN_EPOCHS:
        if now[key] is not None:
            scaled = now[key] * epochs / config.train.epochs
            whole = max(round(scaled), int(now[key] > 0))
            values[key] = scaled if isinstance(now[key], float) else whole
    return with_values(config, values, "search.epochs")
