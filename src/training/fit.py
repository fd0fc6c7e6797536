"""All epochs of one fold: each trained, scored on what the fold holds out, and kept on disk."""

import math
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import torch

from src import cli
from src.artifacts.files import write_table
from src.artifacts.predictions import Predictions
from src.data.dataset import Epochs
from src.metrics import METRICS, short_name, sign
from src.networks.average import Average, refresh_statistics
from src.networks.freeze import load_trained, trained
from src.runtime import seed_all
from src.training.checkpoint import restore, save_checkpoint, snapshot
from src.training.fold import Fold
from src.training.held_out import evaluate, scores
from src.training.loop import Trainer


@dataclass
class Course:
    """How far a training has come.

    history: rows of metrics.csv · best: with `select: best`, epoch, score and weights of the best
    epoch so far · tail: of the last epochs' weights · found: held-out predictions of the weights
    as they are now, where they were made
    """

    history: list[dict] = field(default_factory=list)
    best: dict | None = None
    tail: Average = field(default_factory=Average)
    found: Predictions | None = None

    def facts(self) -> dict:
        """What a checkpoint needs to go on."""
        tail = {"tail": self.tail.facts()} if self.tail.count else {}
        return {"history": self.history, "best": self.best} | tail


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
    course = _begun(job, trainer, checkpoint)
    for epoch in range(len(course.history), job.config.train.epochs):
        seed_all(job.config.seed, job.name, epoch, job.accelerator.process_index)
        epochs.epoch = epoch
        row = {"epoch": epoch + 1} | trainer.train_epoch(loader, epoch)
        _score(job, trainer, course, row)
        _remember(job, trainer, course, row)
        _announce(job, row)
        if job.accelerator.is_main_process:
            write_table(job.directory / "metrics.csv", pd.DataFrame(course.history))
            save_checkpoint(job.directory, state | course.facts() | snapshot(trainer))
        report(row)
    return course.history, _settle(job, trainer, course)


def _begun(job: Fold, trainer: Trainer, checkpoint: dict | None) -> Course:
    if checkpoint is None:
        return Course()
    restore(trainer, checkpoint, job.directory)
    history = checkpoint["history"]
    cli.say(f"{job.directory}: continuing after epoch {len(history)}")
    return Course(history, checkpoint["best"], Average(**checkpoint.get("tail", {})))


def _score(job: Fold, trainer: Trainer, course: Course, row: dict) -> None:
    """Add to the row what the network is worth after this epoch, where that is to be known."""
    train, epoch = job.config.train, row["epoch"]
    course.found = None
    if job.fold is not None and (epoch == train.epochs or epoch % train.eval_every == 0):
        course.found = evaluate(job, trainer.evaluated, trainer.prep, trainer.rest)
        row |= scores(job, course.found)
    row["peak_memory_mib"] = peak_memory(job.accelerator.device)


def _remember(job: Fold, trainer: Trainer, course: Course, row: dict) -> None:
    """The epoch's row, and its weights where they may be kept."""
    train, epoch = job.config.train, row["epoch"]
    course.history.append(row)
    score = _rank(job, row)
    if train.select == "best" and (course.best is None or score > course.best["score"]):
        weights = trained(trainer.evaluated.state_dict(), trainer.rest)
        weights = {name: tensor.cpu().clone() for name, tensor in weights.items()}
        course.best = {"epoch": epoch, "score": score, "network": weights}
    if train.epochs - epoch < train.average_last > 1:
        course.tail.add(trained(trainer.evaluated.state_dict(), trainer.rest))


def _rank(job: Fold, row: dict) -> float:
    """By the competition's metric, larger is better; the lowest where there was no validation."""
    metric = job.config.metric
    return sign(metric) * row[metric] if metric in row else -math.inf


def _settle(job: Fold, trainer: Trainer, course: Course) -> Predictions | None:
    """Give the network the weights that are kept; returns their held-out predictions, if made."""
    if course.best is not None:
        load_trained(trainer.evaluated, course.best["network"], trainer.rest)
        if course.best["epoch"] < job.config.train.epochs:
            return None
    if course.tail.count:
        _use_average(job, trainer, course.tail)
        return None
    return course.found


def _use_average(job: Fold, trainer: Trainer, tail: Average) -> None:
    """The mean of the last epochs' weights in the place of the last epoch's."""
    network, images = trainer.evaluated, job.data.training(job.fold)
    last = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_trained(network, tail.mean(), trainer.rest)
    refresh_statistics(network, last, images, trainer.prep, job.config, job.accelerator)


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
    cli.say(" · ".join([*shown, f"{row['images_per_second']:.0f} images/s"]))
    job.accelerator.log({f"{job.name}/{k}": v for k, v in row.items()}, step=row["epoch"])
