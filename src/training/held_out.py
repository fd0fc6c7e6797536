"""What a network says of the images that its fold holds out, and how that scores."""

from dataclasses import replace

import numpy as np

from src import cli
from src.artifacts.predictions import ZERO_SHOT, Predictions
from src.data.transforms import Preprocessing
from src.errors import UserError
from src.metrics import short_name, summary
from src.networks.base import Network
from src.networks.forward import run_evaluation
from src.networks.freeze import Rest
from src.training.fold import Fold
from src.training.loop import Trainer


def evaluate(
    job: Fold, network: Network, prep: Preprocessing, rest: Rest | None = None
) -> Predictions:
    """Held-out predictions with features. rest: of the network, where all folds may share it"""
    table, kept = job.data.held_out(job.fold), job.kept(rest, prep)
    label = f"{job.name} held-out images"
    found = run_evaluation(network, prep, table, job.config, job.accelerator, label, kept=kept)
    if not np.isfinite(found.logits).all():
        raise UserError("validation logits are not finite; lower train.lr or use precision=fp32")
    return found


def scores(job: Fold, found: Predictions) -> dict[str, float]:
    """By the competition's metric and the search's, and all that tables show."""
    metrics = filter(None, (job.config.metric, job.config.search.metric))
    return summary(found.logits, found.label, job.data.classes["bin"].to_numpy(), *metrics)


def zero_shot(job: Fold, trainer: Trainer) -> Predictions:
    """What the network says of held-out images before it has seen any: a row of the report."""
    found = evaluate(job, trainer.evaluated, trainer.prep, trainer.rest)
    told = " · ".join(f"{short_name(n)} {v:.3f}" for n, v in scores(job, found).items())
    cli.say(f"{job.name} zero-shot: {told}")
    if job.accelerator.is_main_process:
        replace(found, features=None).save(job.directory / ZERO_SHOT)
    return found
