"""Safetensors of ours: tensors by name, and in the header one JSON text that says what they are.

Several keys in the header would be written in any order.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from src.artifacts.work import checked
from src.errors import UserError, shortened

HEADER = "longtail"
AGAIN = "run 02 again with --overwrite"  # what to do about damaged weights


def header(about: dict) -> dict[str, str]:
    """Metadata to save tensors with."""
    return {HEADER: json.dumps(about)}


def read_tensors(
    path: str | Path, framework: str, again: str
) -> tuple[dict | None, dict[str, Any]]:
    """What the header says, None where there is no header of ours, and the tensors.

    framework: `numpy` or `pt` · again: what to do about a damaged file. Errors: UserError for a
    file that is missing or damaged.
    """
    return _read(path, framework, again, lambda file, key: file.get_tensor(key))


def read_shapes(path: str | Path, again: str) -> tuple[dict | None, dict[str, tuple[int, ...]]]:
    """As `read_tensors`, with their shapes alone: no tensor is loaded."""
    return _read(path, "numpy", again, lambda file, key: tuple(file.get_slice(key).get_shape()))


def _read(path: str | Path, framework: str, again: str, what: Callable) -> tuple:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    checked(path)
    try:
        with safe_open(path, framework) as file:
            text = (file.metadata() or {}).get(HEADER)
            tensors = {key: what(file, key) for key in file.keys()}
        about = None if text is None else json.loads(text)
    except Exception as error:  # Rust's, numpy's and json's: types that a damaged header names
        reason = shortened(str(error)) or type(error).__name__
        raise UserError(
            f"{path}: damaged, not a readable safetensors file ({reason}); {again}"
        ) from error
    if text is not None and not isinstance(about, dict):
        raise UserError(
            f"{path}: damaged, its `{HEADER}` header should be a mapping, found "
            f"{shortened(text)}; {again}"
        )
    return about, tensors
