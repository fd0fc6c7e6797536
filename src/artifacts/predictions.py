"""Logits and features of many images on disk. Everything joins by `image_id`.

*.npz        image_id, logits [N, K], label (-1 unknown), fold, features [N, D] where they exist
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.artifacts.files import read_arrays, write_arrays
from src.artifacts.ids import check_same_ids, check_unique
from src.errors import UserError, some

UNKNOWN = -1
ARRAYS = {  # numpy's kinds, dimensions, and both in words
    "image_id": ("U", 1, "text [N]"),
    "logits": ("f", 2, "floats [N, K]"),
    "label": ("iu", 1, "whole numbers [N]"),
    "fold": ("iu", 1, "whole numbers [N]"),
    "features": ("f", 2, "floats [N, D]"),
}


@dataclass(frozen=True)
class Predictions:
    """Logits of many images, joined by `image_id` and never by row.

    image_id: [N] text · logits: [N, K] float32 · label: [N], -1 where unknown · fold: [N], the fold
    whose model made the row, -1 for an average over models · features: [N, D] float32 or None
    """

    image_id: np.ndarray
    logits: np.ndarray
    label: np.ndarray
    fold: np.ndarray
    features: np.ndarray | None = None

    def save(self, path: Path) -> Path:
        """Write an .npz, sorted by image_id."""
        order = np.argsort(self.image_id, kind="stable")
        arrays = {
            "image_id": self.image_id.astype(str)[order],
            "logits": self.logits.astype(np.float32)[order],
            "label": self.label.astype(np.int64)[order],
            "fold": self.fold.astype(np.int64)[order],
        }
        if self.features is not None:
            arrays["features"] = self.features.astype(np.float32)[order]
        return write_arrays(path, **arrays)

    def take(self, image_ids) -> "Predictions":
        """Rows in the order of `image_ids`. Errors: UserError unless both are the same set."""
        ids = np.asarray(image_ids).astype(str)
        check_same_ids(self.image_id, ids, "predictions", "the images asked for")
        order = np.argsort(self.image_id, kind="stable")
        rows = order[np.searchsorted(self.image_id, ids, sorter=order)]
        features = None if self.features is None else self.features[rows]
        return Predictions(
            self.image_id[rows], self.logits[rows], self.label[rows], self.fold[rows], features
        )


def load_predictions(path: Path, num_classes: int) -> Predictions:
    """Errors: UserError for missing arrays or such of another kind, duplicate ids, non-finite
    logits or another K."""
    arrays = _read(path, ("image_id", "logits", "label", "fold"))
    check_unique(arrays["image_id"], path)
    shape = arrays["logits"].shape
    if shape != (len(arrays["image_id"]), num_classes):
        raise UserError(
            f"{path}: logits have shape {shape}, expected [{len(arrays['image_id'])}, "
            f"{num_classes}] (classes.csv has {num_classes} classes)"
        )
    if not np.isfinite(arrays["logits"]).all():
        raise UserError(f"{path}: logits hold NaN or infinity; the training has diverged")
    names = ("image_id", "logits", "label", "fold")
    loaded = Predictions(*(arrays[n] for n in names), arrays.get("features"))
    return loaded.take(np.sort(loaded.image_id))


def _read(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of a file. Errors: UserError unless all `names` are there, and every array of
    ours has its kind and dimensions and as many rows as there are ids."""
    arrays = read_arrays(path)
    again = "delete it and run the script that writes it again"
    if missing := sorted(set(names) - arrays.keys()):
        raise UserError(f"{path}: arrays {some(missing)} are missing; {again}")
    rows = arrays["image_id"].size
    for name, (kinds, dimensions, expected) in ARRAYS.items():
        array = arrays.get(name)
        if array is None:
            continue
        if array.dtype.kind not in kinds or array.ndim != dimensions or len(array) != rows:
            raise UserError(
                f"{path}: {name} is {array.dtype} {list(array.shape)}, expected {expected} with "
                f"N = {rows} ids; {again}"
            )
    return arrays


def stack(parts: list[Predictions]) -> Predictions:
    """Out-of-fold predictions of all folds as one. Errors: UserError when an image is in two."""
    ids = np.concatenate([p.image_id for p in parts])
    check_unique(ids, "out-of-fold predictions")
    features = None
    if (
        all(p.features is not None for p in parts)
        and len({p.features.shape[1] for p in parts}) == 1
    ):
        features = np.concatenate([p.features for p in parts])
    return Predictions(
        ids,
        np.concatenate([p.logits for p in parts]),
        np.concatenate([p.label for p in parts]),
        np.concatenate([p.fold for p in parts]),
        features,
    ).take(np.sort(ids))


def save_features(path: Path, image_id: np.ndarray, features: np.ndarray) -> Path:
    """image_id: [N] · features: [N, D]; written sorted by image_id."""
    order = np.argsort(image_id, kind="stable")
    ids = image_id.astype(str)[order]
    return write_arrays(path, image_id=ids, features=features.astype(np.float32)[order])


def load_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N], sorted, and features [N, D]. Errors: UserError for a damaged file."""
    arrays = _read(path, ("image_id", "features"))
    order = np.argsort(arrays["image_id"], kind="stable")
    return arrays["image_id"][order], arrays["features"][order]
