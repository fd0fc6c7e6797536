"""Classifiers on disk: head.safetensors.

The arrays of each kind are those of `SHAPES`; columns [2] where it acts on a part of the features.

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

WHOLE = dict.fromkeys(("columns", "labels", "k"), np.int64)
TYPES = WHOLE | {"bank": np.float16}  # all others are float32
SHAPES = {  # a letter is one number throughout a head: K classes, D features, n centres of a class,
    # N neighbours, E of text
    "linear": {"weight": "KD", "bias": "K"},
    "cosine": {"weight": "KD", "scale": ""},
    "subcentre": {"weight": "KnD", "scale": ""},
    "centred": {"weight": "KD", "bias": "K", "center": "D"},
    "label_embedding": {"projection": "ED", "bias": "E", "text": "KE", "scale": ""},
    "knn": {
        "bank": "ND",
        "labels": "N",
        "votes": "K",
        "k": "",
        "temperature": "",
        "smoothing": "",
    },
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
    if set(arrays) - {"columns"} != set(SHAPES.get(kind, ())):
        raise ValueError(f"a head of kind {kind!r} cannot be made of {sorted(arrays)}")
    plain = {k: np.array(v, TYPES.get(k, np.float32), order="C") for k, v in arrays.items()}
    return write_bytes(path, safetensors.numpy.save(plain, header({"kind": kind})))


def load_head(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Kind and arrays of a head that `save_head` wrote.

    Errors: UserError when the file is missing, damaged, or holds no head.
    """
    about, arrays = read_tensors(path, "numpy", "run 02 or 03 again with --overwrite")
    kind = (about or {}).get("kind")
    known = isinstance(kind, str) and kind in SHAPES
    if not known or set(arrays) - {"columns"} != set(SHAPES[kind]):
        raise UserError(
            f"{path}: not a head: kind {kind!r} with arrays {sorted(arrays)}, expected one of "
            f"{ {k: sorted(v) for k, v in SHAPES.items()} }; run 02 or 03 again"
        )
    sizes: dict[str, int] = {}
    for name, shape in SHAPES[kind].items():
        array = arrays[name]
        right = len(shape) == array.ndim and 0 not in array.shape
        right = right and all(
            sizes.setdefault(c, n) == n for c, n in zip(shape, array.shape, strict=True)
        )
        _check(path, kind, name, array, right)
    if "columns" in arrays:
        _check(path, kind, "columns", arrays["columns"], arrays["columns"].shape == (2,))
    return kind, arrays


def _check(path: Path, kind: str, name: str, array: np.ndarray, right: bool) -> None:
    """Errors: UserError unless the shape is right and the type, too."""
    wanted = np.dtype(TYPES.get(name, np.float32))
    if not right or array.dtype != wanted:
        shape = "2" if name == "columns" else ", ".join(SHAPES[kind][name])
        raise UserError(
            f"{path}: {name} of this {kind} head is {array.dtype} {list(array.shape)}, expected "
            f"{wanted} [{shape}], with K classes and D features; run 02 or 03 again with "
            "--overwrite"
        )
