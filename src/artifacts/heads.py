"""Classifiers on disk: head.safetensors.

weight [K, D] and bias [K] (linear), weight and scale [] (cosine), or weight, bias, center [D];
columns [2] where it acts on a part of the features

A head's name is its title (`stage1`, or that of a head of stage 2), and where the network has
several branches, `<title>@<branch>`.
"""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from src.artifacts.files import write_bytes
from src.artifacts.work import checked
from src.errors import UserError

HEAD_ARRAYS = {
    "linear": {"weight", "bias"},
    "cosine": {"weight", "scale"},
    "centred": {"weight", "bias", "center"},
}


def head_file(branch: str = "") -> str:
    """The file's name in a network's directory; without a branch, that of a head's own."""
    return f"head@{branch}.safetensors" if branch else "head.safetensors"


def save_head(path: Path, kind: str, arrays: dict[str, np.ndarray]) -> Path:
    """Write a classifier as safetensors, the same bytes for the same arrays.

    kind and arrays: as in `src.logits.head_logits`.
    Metadata is one JSON text under the key `longtail`: several keys would be written in any order.
    """
    if set(arrays) - {"columns"} != HEAD_ARRAYS.get(kind):
        raise ValueError(f"a head of kind {kind!r} cannot be made of {sorted(arrays)}")
    kinds = {"columns": np.int64}
    plain = {k: np.array(v, kinds.get(k, np.float32), order="C") for k, v in arrays.items()}
    return write_bytes(
        path, safetensors.numpy.save(plain, {"longtail": json.dumps({"kind": kind})})
    )


def load_head(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Kind and arrays of a head that `save_head` wrote.

    Errors: UserError when the file is missing, damaged, or holds no head.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(checked(path), framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("longtail", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    kind = facts.get("kind")
    if kind not in HEAD_ARRAYS or set(arrays) - {"columns"} != HEAD_ARRAYS[kind]:
        raise UserError(
            f"{path}: not a head: kind {kind!r} with arrays {sorted(arrays)}, expected one of "
            f"{ {k: sorted(v) for k, v in HEAD_ARRAYS.items()} }; run 02 or 03 again"
        )
    return kind, arrays
