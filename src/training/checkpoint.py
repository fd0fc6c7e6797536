"""`last.pt`: everything a run needs to go on as if it had never been stopped.

It is written at the end of each epoch. Random generators are not in it, because every random choice
is a function of (seed, epoch, …).
"""

import io
from pathlib import Path

import torch

from src.artifacts.files import write_bytes
from src.errors import UserError

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
