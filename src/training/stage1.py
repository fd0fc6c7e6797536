"""Stage 1: folds.csv → a network per fold (and one on every image), with out-of-fold logits."""

import importlib.util
import math
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from src.artifacts.dataset import FULL, Dataset, fold_name, load_dataset
from src.artifacts.files import read_json, write_table
from src.artifacts.lock import locked
from src.artifacts.predictions import ZERO_SHOT, Predictions
from src.artifacts.trained import write_config
from src.artifacts.work import MANIFEST, RUNS, Work
from src.config.schema import Config
from src.config.tree import dump_config, flatten
from src.data.dataset import Epochs
from src.data.resizing import check_augment
from src.data.transforms import Preprocessing
from src.errors import UserError
from src.language.text import with_text
from src.metrics import METRICS, short_name, sign, summary
from src.networks.average import Average, refresh_statistics
from src.networks.base import Network
from src.networks.forward import run_evaluation
from src.networks.freeze import load_trained, trained
from src.networks.weights import check_warm_start
from src.plots.curves import draw_curves, load_curves
from src.runtime import seed_all, start
from src.search.winner import describe, with_winner
from src.training.checkpoint import load_checkpoint, restore, save_checkpoint, snapshot
from src.training.job import Fold, build_trainer, listening
from src.training.keep import Made, keep
from src.training.loop import Trainer
from src.training.pseudo import FILE as PSEUDO
from src.training.pseudo import pseudo_files, pseudo_rows
from src.training.teachers import teachers_of


def stage1(config: Config, experiment: str, folds: list[str], overwrite: bool) -> pd.DataFrame:
    """Train the folds asked for (all of them by default); returns a row of metrics per fold.

    folds: numbers and `full`. Errors: UserError for a fold that does not exist, finished work with
    another config, and everything in `train_fold`.
    """
    check_augment(config)
    data = load_dataset(config.dataset)
    wanted = [parse_fold(f, data) for f in folds] or data.folds
    _check_tracker(config.train.tracker)
    home = RUNS / config.dataset / experiment
    asked = config
    config, searched = with_winner(asked, home, data)
    accelerator = start(config.train.precision, config.train.tracker, str(home / "tracker"))
    if note := describe(asked, searched, home):
        accelerator.print(note)
    if config.train.batch_size % accelerator.num_processes:
        raise UserError(
            f"train.batch_size ({config.train.batch_size}) must be a multiple of the number of "
            f"processes ({accelerator.num_processes})"
        )
    if config.train.tracker != "none":
        values = flatten(dump_config(config))  # trackers take numbers and text alone
        simple = {k: v if isinstance(v, int | float | str) else str(v) for k, v in values.items()}
        accelerator.init_trackers(config.dataset, simple)
    data = with_text(data, config, (config.model, config.train), accelerator)
    names = [fold_name(fold) for fold in wanted]
    check_other_folds(config, home / "stage1", set(names))
    left = [n for n in names if overwrite or not (home / "stage1" / n / MANIFEST).is_file()]
    check_warm_start(config.model, data, left)
    for fold in (k for k in wanted if fold_name(k) in left):
        teachers_of(config, experiment, data, fold)
    rows = []
    for fold in wanted:
        name = fold_name(fold)
        job = Fold(config, data, fold, home / "stage1" / name, accelerator, searched)
        rows.append({"fold": name} | train_fold(job, overwrite))
        if accelerator.is_main_process:
            with locked(home / "stage1"):  # other folds may be trained by another command
                if curves := load_curves(home / "stage1"):  # none of what was not trained
                    draw_curves(curves, home / "stage1" / "curves.png")
    accelerator.end_training()
    return pd.DataFrame(rows)


def settings_of(config: Config) -> dict:
    """What decides how a network comes out."""
    keys = ("model", "train", "metric", "seed") + (("soup",) if config.soup else ())
    keys += ("judge",) if config.soup and config.soup.mode == "wise" else ()
    found = {key: getattr(config, key) for key in keys}
    if config.model.network.captions:
        found |= {"text": {"names": config.text.names, "templates": config.text.templates}}
    return found


def check_other_folds(config: Config, stage1: Path, wanted: set[str]) -> None:
    """One config.yaml speaks for all folds. Errors: UserError when folds that are not trained now
    were trained with another config."""
    asked = Work(stage1, settings_of(config), {}, shared=True)
    for path in sorted(stage1.glob(f"*/{MANIFEST}")):
        if path.parent.name not in wanted:
            asked.check_settings(read_json(path, {"settings": dict})["settings"], path)


def train_fold(job: Fold, overwrite: bool) -> dict[str, float]:
    """Train, or continue, or skip one fold; returns its metrics (none for `full`).

    Writes config.yaml of the experiment, and last.pt, metrics.csv, weights.safetensors,
    head.safetensors, oof.npz and manifest.json of the fold; after no epoch no last.pt nor
    metrics.csv.
    """
    accelerator, config = job.accelerator, job.config
    settings = settings_of(config)
    inputs = {name: job.data.directory / name for name in ("folds.csv", "classes.csv")}
    if isinstance(config.model.pretrained, str) and Path(config.model.pretrained).is_file():
        inputs["pretrained"] = Path(config.model.pretrained)
    inputs |= job.data.text_input()
    labelled = pseudo_files(config, job.directory.parents[1].name, job.data, job.fold)
    inputs |= {f"pseudo/{name}": path for name, path in labelled.items()}
    teachers = teachers_of(config, job.directory.parents[1].name, job.data, job.fold)
    for one in (one for networks in teachers for one in networks):
        inputs |= one.inputs()
    main = accelerator.is_main_process
    with accelerator.main_process_first():  # the main process clears the directory on --overwrite
        work = Work(
            job.directory,
            settings,
            inputs,
            overwrite=overwrite,
            redo_on_new_inputs=False,
            main=main,
        )
        finished = work.finished()
    if finished:
        return work.manifest()["metrics"]
    checkpoint = load_checkpoint(job.directory)
    if checkpoint is not None:
        work.check_settings(checkpoint["settings"], job.directory / "last.pt")
        work.check_inputs(checkpoint["inputs"], job.directory / "last.pt")
    if main:
        with locked(job.directory.parent):  # as other folds may be trained by another command
            write_config(job.directory.parents[1], config, job.searched)
    if labelled:
        job = replace(job, pseudo=pseudo_rows(config, labelled, job.data, job.fold))
    if teachers:
        job = listening(job, teachers)
    trainer, loader, epochs = build_trainer(job, fresh=checkpoint is None)
    first = None
    if checkpoint is None and config.model.network.captions and job.fold is not None:
        first = _zero_shot(job, trainer)
    state = {"settings": work.settings, "inputs": work.inputs}
    history, found = fit(job, trainer, loader, epochs, state, checkpoint)
    return finish(job, trainer, history, found if history else first, work)


def _zero_shot(job: Fold, trainer: Trainer) -> Predictions:
    """What the network says of held-out images before it has seen any: a row of the report."""
    found = evaluate(job, trainer.evaluated, trainer.prep)
    told = " · ".join(f"{short_name(n)} {v:.3f}" for n, v in scores(job, found).items())
    job.accelerator.print(f"{job.name} zero-shot: {told}")
    if job.accelerator.is_main_process:
        replace(found, features=None).save(job.directory / ZERO_SHOT)
    return found


def fit(
    job: Fold,
    trainer: Trainer,
    loader,
    epochs: Epochs,
    state: dict,
    checkpoint: dict | None,
    report: Callable[[dict], None] = lambda row: None,
) -> tuple[list[dict], Predictions | None]:
    """All epochs from where `checkpoint` stops; returns the rows of metrics.csv, and the held-out
    predictions of the weights that are kept, if the last thing done was to make them.

    report: is given each new row; a search stops a hopeless training by raising from it
    """
    train, accelerator = job.config.train, job.accelerator
    history: list[dict] = []
    best = found = None
    tail = Average()  # of the last epochs
    if checkpoint is not None:
        restore(trainer, checkpoint, job.directory)
        history, best = checkpoint["history"], checkpoint["best"]
        tail = Average(**checkpoint.get("tail", {}))
        accelerator.print(f"{job.directory}: continuing after epoch {len(history)}")
    for epoch in range(len(history), train.epochs):
        seed_all(job.config.seed, job.name, epoch, accelerator.process_index)
        epochs.epoch, found = epoch, None
        row = {"epoch": epoch + 1} | trainer.train_epoch(loader, epoch)
        last = epoch + 1 == train.epochs
        if job.fold is not None and (last or (epoch + 1) % train.eval_every == 0):
            found = evaluate(job, trainer.evaluated, trainer.prep)
            row |= scores(job, found)
        row["peak_memory_mib"] = peak_memory(accelerator.device)
        history.append(row)
        if train.select == "best" and (best is None or _score(job, row) > best["score"]):
            weights = trained(trainer.evaluated.state_dict(), trainer.rest)
            best = {
                "epoch": epoch + 1,
                "score": _score(job, row),
                "network": {k: v.cpu().clone() for k, v in weights.items()},
            }
        if train.epochs - epoch <= train.average_last > 1:
            tail.add(trained(trainer.evaluated.state_dict(), trainer.rest))
        _announce(job, row)
        if accelerator.is_main_process:
            write_table(job.directory / "metrics.csv", pd.DataFrame(history))
            progress = {"history": history, "best": best}
            progress |= {"tail": tail.facts()} if tail.count else {}
            save_checkpoint(job.directory, state | progress | snapshot(trainer))
        report(row)
    if best is not None:
        load_trained(trainer.evaluated, best["network"], trainer.rest)
        found = found if best["epoch"] == train.epochs else None
    if tail.count:
        _use_average(job, trainer, tail)
        found = None
    return history, found


def _use_average(job: Fold, trainer: Trainer, tail: Average) -> None:
    """The mean of the last epochs' weights in the place of the last epoch's."""
    network, images = trainer.evaluated, job.data.training(job.fold)
    last = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_trained(network, tail.mean(), trainer.rest)
    refresh_statistics(network, last, images, trainer.prep, job.config, job.accelerator)


def finish(
    job: Fold, trainer: Trainer, history: list[dict], found: Predictions | None, work: Work
) -> dict[str, float]:
    """Write what later stages read, manifest last. found: held-out predictions, if already made"""
    network, metrics = trainer.evaluated, {}
    if job.fold is not None:
        found = found or evaluate(job, network, trainer.prep)
        metrics = scores(job, found)
    outputs = ["metrics.csv"] if history else []
    if history and job.accelerator.is_main_process:
        write_table(job.directory / "metrics.csv", pd.DataFrame(history))
    if (job.directory / ZERO_SHOT).is_file():
        outputs.append(ZERO_SHOT)
    if job.pseudo is not None:
        outputs.append(PSEUDO)
        if job.accelerator.is_main_process:
            write_table(job.directory / PSEUDO, job.pseudo.table)
    facts = {
        "select": job.config.train.select if history else "last",  # no choice of one
        "searched": job.searched,
        "train_seconds": round(sum(row["seconds"] for row in history), 1),
        **({"warm_start": trainer.began.facts()} if trainer.began.total else {}),
        **({"pseudo": job.pseudo.facts} if job.pseudo else {}),
        **({"distill": job.taught.facts} if job.taught else {}),
    }
    made = Made(network, trainer.prep, trainer.rest)
    keep(job, made, found, metrics, work, outputs, facts)
    job.accelerator.wait_for_everyone()
    return metrics


def evaluate(job: Fold, network: Network, prep: Preprocessing) -> Predictions:
    """Held-out predictions with features."""
    table = job.data.held_out(job.fold)
    found = run_evaluation(network, prep, table, job.config, job.accelerator)
    if not np.isfinite(found.logits).all():
        raise UserError("validation logits are not finite; lower train.lr or use precision=fp32")
    return found


def scores(job: Fold, found: Predictions) -> dict[str, float]:
    """By the competition's metric and the search's, and all that tables show."""
    metrics = filter(None, (job.config.metric, job.config.search.metric))
    return summary(found.logits, found.label, job.data.classes["bin"].to_numpy(), *metrics)


def _score(job: Fold, row: dict) -> float:
    """By the competition's metric, larger is better; the lowest where there was no validation."""
    metric = job.config.metric
    return sign(metric) * row[metric] if metric in row else -math.inf


def peak_memory(device: torch.device) -> float:
    """MiB: of GPU tensors, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _announce(job: Fold, row: dict) -> None:
    """One line per epoch, and the tracker."""
    shown = [
        f"{job.name} epoch {row['epoch']}/{job.config.train.epochs}",
        f"loss {row['loss']:.3f}",
    ]
    names = [*METRICS, job.config.metric, "many", "medium", "few", "head", "tail"]
    shown += [f"{short_name(n)} {row[n]:.3f}" for n in dict.fromkeys(names) if n in row]
    job.accelerator.print(
        " · ".join([*shown, f"{row['images_per_second']:.0f} images/s"]), flush=True
    )
    job.accelerator.log({f"{job.name}/{k}": v for k, v in row.items()}, step=row["epoch"])


def parse_fold(text: str, data: Dataset) -> int | None:
    if text == FULL:
        return None
    if text not in map(str, data.folds):  # int() also takes "٣", and fails for "²"
        raise UserError(f"--folds {text}: expected numbers of {data.folds} or `full`")
    return int(text)


def _check_tracker(name: str) -> None:
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"train.tracker={name}: not installed; run `pip install {name}`")
