"""Classifiers on disk: head.safetensors.

weight [K, D] and bias [K] (linear), weight and scale [] (cosine), or weight, bias, center [D];
columns [2] where it acts on a part of the features

A head's name is its title (`stage1`, or that of a head of stage 2), and where the network has
several branches, `<title>@<branch>`.
"""

from pathlib import Path

import numpy as np
import safetensors.numpy

from src.artifacts.files import write_bytes
from src.artifacts.tensors import header, read_tensors
from src.config.names import STAGE1, branch_of, of_stage1
from src.errors import UserError

KINDS = {"columns": np.int64}  # all others are float32
HEAD_ARRAYS = {
    "linear": {"weight", "bias"},
    "cosine": {"weight", "scale"},
    "centred": {"weight", "bias", "center"},
}


def head_file(branch: str = "") -> str:
    """The file's name in a network's directory; without a branch, that of a head's own."""
    return f"head@{branch}.safetensors" if branch else "head.safetensors"


def head_path(home: Path, name: str, network: str) -> Path:
    """Where 02 or 03 puts the head `name` of the network `fold<k>` or `full` of an experiment. The
    name `stage1` of a network with branches has no file: its logits are no head's."""
    if of_stage1(name):
        return home / STAGE1 / network / head_file(branch_of(name))
    return home / "stage2" / name / network / head_file()


def save_head(path: Path, kind: str, arrays: dict[str, np.ndarray]) -> Path:
    """Write a classifier as safetensors, the same bytes for the same arrays.

    kind and arrays: as in `src.logits.head_logits`.
    """
    if set(arrays) - {"columns"} != HEAD_ARRAYS.get(kind):
        raise ValueError(f"a head of kind {kind!r} cannot be made of {sorted(arrays)}")
    plain = {k: np.array(v, KINDS.get(k, np.float32), order="C") for k, v in arrays.items()}
    return write_bytes(path, safetensors.numpy.save(plain, header({"kind": kind})))


def load_head(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Kind and arrays of a head that `save_head` wrote.

    Errors: UserError when the file is missing, damaged, or holds no head.
    """
    about, arrays = read_tensors(path, "numpy", "run 02 or 03 again with --overwrite")
    kind = (about or {}).get("kind")
    known = isinstance(kind, str) and kind in HEAD_ARRAYS
    if not known or set(arrays) - {"columns"} != HEAD_ARRAYS[kind]:
        raise UserError(
            f"{path}: not a head: kind {kind!r} with arrays {sorted(arrays)}, expected one of "
            f"{ {k: sorted(v) for k, v in HEAD_ARRAYS.items()} }; run 02 or 03 again"
        )
    weight = arrays["weight"]
    rows, width = weight.shape if weight.ndim == 2 else (0, 0)
    right = {"weight": (rows, width), "bias": (rows,), "center": (width,), "scale": ()}
    right["columns"] = (2,)
    for name, array in sorted(arrays.items(), reverse=True):  # the weight first
        if not rows or array.shape != right[name] or array.dtype != KINDS.get(name, np.float32):
            raise UserError(
                f"{path}: {name} of this {kind} head is {array.dtype} {list(array.shape)}, "
                "expected float32, weight [K, D], bias [K], center [D], scale [], and of whole "
                "numbers columns [2]; run 02 or 03 again with --overwrite"
            )
    return kind, arrays
