"""One fold of stage 1 from its weights at first, or where it was stopped, to its artifacts."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from src.artifacts.files import write_table
from src.artifacts.predictions import ZERO_SHOT, Predictions
from src.artifacts.work import Work
from src.progress import Reached
from src.training.checkpoint import load_checkpoint, save_checkpoint, snapshot
from src.training.fit import fit
from src.training.fold import Fold
from src.training.held_out import evaluate, scores, zero_shot
from src.training.job import build_trainer, listening
from src.training.keep import Made, keep
from src.training.loop import Trainer
from src.training.pseudo import FILE as PSEUDO
from src.training.pseudo import pseudo_rows
from src.training.teachers import Teachers


def train(job: Fold, labelled: dict[str, Path], teachers: Teachers, work: Work) -> dict[str, float]:
    """Train, or continue; returns its metrics and writes what stage1.py says.

    labelled: files of pseudo-labels, by name
    """
    config = job.config
    checkpoint = _checkpoint(job, work)
    if labelled:
        job = replace(job, pseudo=pseudo_rows(config, labelled, job.data, job.fold))
    if teachers:
        job = listening(job, teachers)
    trainer, loader, epochs = build_trainer(job, fresh=checkpoint is None)
    first = None
    if checkpoint is None and config.model.network.captions and job.fold is not None:
        first = zero_shot(job, trainer)
    state = {"settings": work.settings, "inputs": work.inputs}
    try:
        history, found = fit(job, trainer, loader, epochs, state, checkpoint)
    except Reached:  # --dry-run: its files tell how large they are
        save_checkpoint(job.directory, snapshot(trainer))
        raise
    return finish(job, trainer, history, found if history else first, work)


def _checkpoint(job: Fold, work: Work) -> dict | None:
    """Where a training was stopped. Errors: UserError when it had other settings or inputs."""
    found = load_checkpoint(job.directory)
    if found is not None:
        work.check_settings(found["settings"], job.directory / "last.pt")
        work.check_inputs(found["inputs"], job.directory / "last.pt")
    return found


def finish(
    job: Fold, trainer: Trainer, history: list[dict], found: Predictions | None, work: Work
) -> dict[str, float]:
    """Write what later stages read, manifest last. found: held-out predictions, if already made"""
    network, metrics = trainer.evaluated, {}
    if job.fold is not None:
        found = found or evaluate(job, network, trainer.prep, trainer.rest)
        metrics = scores(job, found)
    tables = {"metrics.csv": pd.DataFrame(history)} if history else {}
    if job.pseudo is not None:
        tables[PSEUDO] = job.pseudo.table
    if job.accelerator.is_main_process:
        for name, table in tables.items():
            write_table(job.directory / name, table)
    outputs = [*tables, *([ZERO_SHOT] if (job.directory / ZERO_SHOT).is_file() else [])]
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
