"""Vectors that were made elsewhere: an .npz with class_id [K], text, and embeddings [K, E]."""

from pathlib import Path

import numpy as np

from src.artifacts.files import read_arrays, sha256
from src.errors import UserError, some

NEEDS = ("class_id", "embeddings")


def precomputed(section, class_ids: list[str]) -> tuple[np.ndarray, dict[str, str]]:
    """[K, E] in the order of `class_ids`, and the file's hash.

    Errors: UserError for a file that is missing or damaged, has other classes, or whose vectors are
    of another number or width, not finite, or zero.
    """
    path = Path(section.file)
    arrays = read_arrays(path)
    if lacking := [name for name in NEEDS if name not in arrays]:
        raise UserError(
            f"{path}: the arrays {some(lacking)} are missing, it has {sorted(arrays)}; expected "
            "class_id [K], text, and embeddings [K, E]"
        )
    found, rows = arrays["class_id"].astype(str), arrays["embeddings"]
    if rows.ndim != 2 or found.ndim != 1 or len(rows) != len(found) or rows.dtype.kind != "f":
        raise UserError(
            f"{path}: expected class_id [K] and embeddings [K, E], floats; found "
            f"{list(found.shape)} and {rows.dtype} {list(rows.shape)}"
        )
    _check_classes(path, found.tolist(), class_ids)
    place = {class_id: row for row, class_id in enumerate(found.tolist())}
    rows = rows[[place[class_id] for class_id in class_ids]]
    if (wrong := ~np.isfinite(rows).all(1) | ~rows.any(1)).any():
        classes = np.array(class_ids)[wrong]
        raise UserError(f"{path}: the embeddings of {some(classes)} are zero or not finite")
    return rows, {"sha256": sha256(path)}


def _check_classes(path: Path, found: list[str], wanted: list[str]) -> None:
    names, counts = np.unique(found, return_counts=True)
    if twice := names[counts > 1].tolist():
        raise UserError(f"{path}: the classes {some(twice)} are there more than once")
    lacking, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if lacking or unknown:
        raise UserError(
            f"{path}: made for other classes than classes.csv lists: {len(lacking)} of "
            f"{len(wanted)} are missing: {some(lacking)}; {len(unknown)} are unknown: "
            f"{some(unknown)}. Make it with exactly the class_id of classes.csv"
        )
