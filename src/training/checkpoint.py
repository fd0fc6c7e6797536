"""`last.pt`: everything a run needs to go on as if it had never been stopped.

It is written at the end of each epoch. Random generators are not in it, because every random choice
is a function of (seed, epoch, …); nor are frozen weights that can be had again, whose hash is.
"""

import io
from pathlib import Path

import torch

from src.artifacts.files import write_bytes
from src.errors import UserError
from src.networks.freeze import load_trained, trained
from src.training.loop import Trainer

NAME = "last.pt"


def save_checkpoint(directory: Path, state: dict) -> None:
    """`state`: tensors, numbers, text, and lists and dicts of them."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(directory / NAME, buffer.getbuffer())


def load_checkpoint(directory: Path) -> dict | None:
    """The newest state, on the CPU; None when there is none. Nothing pickled is executed."""
    path = directory / NAME
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for damaged files
        raise UserError(
            f"{path}: damaged checkpoint ({error}). Delete it to start this fold again."
        ) from error


def snapshot(trainer: Trainer) -> dict:
    """What changes in a training, without the rest of a partly frozen network."""
    scaler, rest = trainer.accelerator.scaler, trainer.rest
    objective = trainer.accelerator.unwrap_model(trainer.objective).state_dict()
    ema = None if trainer.ema is None else trained(trainer.ema.state_dict(), rest, "module.")
    state = {
        "objective": trained(objective, rest, "network."),
        "optimizer": trainer.optimizer.state_dict(),
        "ema": ema,
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    return state if rest is None else state | {"frozen": rest.facts()}


def restore(trainer: Trainer, checkpoint: dict, directory: Path) -> None:
    """Errors: UserError when the frozen weights are others than those of the checkpoint."""
    rest = trainer.rest
    facts = None if rest is None else rest.facts()
    if (then := checkpoint.get("frozen")) != facts:  # absent where nothing is frozen
        raise UserError(
            f"{directory / NAME}: trained on frozen weights {_described(then)}; there are now "
            f"{_described(facts)}. Bring those back, or run again with --overwrite"
        )
    objective = trainer.accelerator.unwrap_model(trainer.objective)
    load_trained(objective, checkpoint["objective"], rest, "network.")
    trainer.optimizer.load_state_dict(checkpoint["optimizer"])
    if trainer.ema is not None:
        load_trained(trainer.ema, checkpoint["ema"], rest, "module.")
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(checkpoint["scaler"])


def _described(facts: dict | None) -> str:
    if facts is None:
        return "that are in it"
    return f"of {facts['source']} with sha256 {facts['source_sha256'] or facts['sha256']}"
