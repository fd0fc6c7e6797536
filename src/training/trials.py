"""`02_train_stage1.py --search`: settings of stage 1 that do best on a split inside one fold's
training images (weight decay, as in Alshammari et al., CVPR 2022, by default).

The held-out images of `search.fold` are never looked at. A trial is a short training on about 80 %
of the rest, scored with evaluation transforms on the other 20 %. The values are drawn by a
tree-structured Parzen estimator (Bergstra et al. 2011), the config's own come first.

Those training images are what the other folds hold out, and 02 uses the winner in all folds. So
its out-of-fold scores on `search.fold` are honest, and those on the other folds are slightly
optimistic; `src.oof.optimism` says so wherever they are shown.
"""

from pathlib import Path

import optuna
import pandas as pd
from accelerate import Accelerator
from optuna.trial import Trial

from src import cli
from src.artifacts.dataset import Dataset, load_dataset
from src.artifacts.work import RUNS
from src.config.read import with_values
from src.config.schema import Config
from src.config.shorter import shortened_to
from src.config.tree import dump_config, flatten
from src.data.resizing import check_augment
from src.errors import UserError
from src.language.text import with_text
from src.metrics import sign
from src.runtime import start
from src.search.run import Plan, check_alone, run_search
from src.search.study import origin
from src.training.checkpoint import NAME as CHECKPOINT
from src.training.checkpoint import load_checkpoint
from src.training.decide import decided
from src.training.fit import fit
from src.training.fold import Fold
from src.training.inner_split import inner_split
from src.training.job import build_trainer

SETTINGS = ("model", "train", "metric", "seed")


def search(config: Config, experiment: str, overwrite: bool) -> pd.DataFrame:
    """Run trials until there are `search.trials`; returns them as a table.

    Writes search/, and in trials/<n>/ there a metrics.csv. Errors: UserError for a search that
    makes no sense, another config in the same directory, or trials that all fail.
    """
    check_augment(config)
    data = load_dataset(config.dataset)
    config, lines = decided(config, RUNS / config.dataset / experiment, data, anew=overwrite)
    if lines:
        check_augment(config)
    _check(config, data)
    accelerator = start(config.train.precision)
    check_alone(accelerator)
    for line in lines:
        cli.say(line)
    data = with_text(data, config, (config.model, config.train), accelerator)
    left_out = ("trials", "use", "stage2")
    spec = {k: v for k, v in dump_config(config.search).items() if k not in left_out}
    plan = Plan(
        RUNS / config.dataset / experiment / "search",
        proxy(config).search,
        flatten(dump_config(config)),
        config.search.metric or config.metric,
        {"search": spec} | {key: getattr(config, key) for key in SETTINGS},
        {n: data.directory / n for n in ("folds.csv", "classes.csv")} | data.text_input(),
    )
    inner = inner_split(data, config.search)

    def run(trial: Trial, values: dict) -> float:
        return run_trial(config, inner, plan.directory, accelerator, trial, values)

    return run_search(plan, overwrite, run)


def _check(config: Config, data: Dataset) -> None:
    spec, pretrained = config.search, config.model.pretrained
    if spec.fold not in data.folds:
        raise UserError(f"search.fold: {spec.fold} is none of the folds {data.folds}")
    epochs = spec.keys.get("train.epochs")
    if config.train.epochs == 0 or (epochs is not None and 0 in epochs.ends):
        raise UserError(
            "train.epochs=0 trains nothing, so no setting of stage 1 matters; search the heads on "
            "its features with 03_train_stage2.py --search, or train for 1 epoch or more"
        )
    if spec.epochs is not None and "train.epochs" in spec.keys:
        raise UserError("search.keys: train.epochs is set by search.epochs; remove one of them")
    if config.train.pseudo.rounds:
        raise UserError(
            "train.pseudo: the networks that label the test images have seen the images on which "
            "trials are scored. Search in the first round, without train.pseudo"
        )
    if config.train.distill.teachers:
        raise UserError(
            "train.distill: the teachers' networks have seen the images on which trials are "
            "scored. Search without train.distill"
        )
    if isinstance(pretrained, str) and pretrained.startswith("experiment:"):
        name = pretrained.removeprefix("experiment:")
        if name.rpartition("/")[0] in ("", config.dataset):
            raise UserError(
                f"model.pretrained={pretrained}: that network has seen the images on which trials "
                "are scored. Search from other weights"
            )


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
    cli.say(f"trial {trial.number}: {shown}")
    home = directory / "trials" / f"{origin(trial):03d}"

    def report(row: dict) -> None:
        if metric in row:
            trial.report(row[metric], row["epoch"])
            if row["epoch"] < tried.train.epochs and trial.should_prune():  # else it is finished
                (home / CHECKPOINT).unlink(missing_ok=True)
                raise optuna.TrialPruned

    try:
        tried = with_values(proxy(config), values, "search")
        job = Fold(tried, inner, spec.fold, home, accelerator)
        state = {"settings": dump_config(job.config.train), "inputs": {}}
        checkpoint = load_checkpoint(home)
        for row in () if checkpoint is None else checkpoint["history"]:
            report(row)
        history, _ = fit(
            job, *build_trainer(job, fresh=checkpoint is None), state, checkpoint, report
        )
    except UserError as error:
        trial.set_user_attr("note", str(error))
        cli.say(f"trial {trial.number}: {error}")
        (home / CHECKPOINT).unlink(missing_ok=True)
        raise optuna.TrialPruned from error
    finally:
        accelerator.free_memory()
    (home / CHECKPOINT).unlink(missing_ok=True)
    rows = [row for row in history if metric in row]
    if job.config.train.select == "best":
        return max(rows, key=lambda row: sign(config.metric) * row[config.metric])[metric]
    return rows[-1][metric]


def proxy(config: Config) -> Config:
    """The config with the epochs of a trial; what counts in epochs shrinks in proportion, and what
    ends before the training still does.

    A pruner sees validations alone, so with one there is one after each epoch.
    """
    epochs = config.search.epochs or config.train.epochs
    values: dict = {"search.epochs": epochs} | shortened_to(config, epochs)
    if config.search.pruner != "none":
        values["train.eval_every"] = 1
    return with_values(config, values, "search.epochs")
