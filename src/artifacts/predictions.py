"""Logits and features of many images on disk. Everything joins by `image_id`.

*.npz        image_id, logits [N, K], label (-1 unknown), fold, features [N, D] and distance [N]
             where they exist, column.<name>: the columns of data.columns, text

`distance` is of heads that compare features with something: 1 − cosine to the nearest class centre,
class mean or (knn) training image, from 0 to 2 (`src.logits.head_distance`). In an oof.npz that is
what the fold's network and head were fitted on, which the image is not part of; predict/<head>.npz
has the mean over the networks. A threshold that all but a few percent of the out-of-fold images
keep below finds test images that are of no known class.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from src.artifacts.files import read_arrays, write_arrays
from src.artifacts.ids import check_same_ids, check_unique
from src.artifacts.space import space
from src.artifacts.work import checked
from src.errors import UserError, some
from src.metrics.outcomes import chunks

ZERO_SHOT = "zero_shot.npz"  # of held-out images, by a network of captions before its training
UNKNOWN = -1
COLUMN = "column."  # in an .npz, before the name of a column
ARRAYS = {  # what it is saved as, numpy's kinds, dimensions, and both in words
    "image_id": (str, "U", 1, "text [N]"),
    "logits": (np.float32, "f", 2, "floats [N, K]"),
    "label": (np.int64, "iu", 1, "whole numbers [N]"),
    "fold": (np.int64, "iu", 1, "whole numbers [N]"),
    "features": (np.float32, "f", 2, "floats [N, D]"),
    "distance": (np.float32, "f", 1, "floats [N]"),
}
TEXT = ARRAYS["image_id"]  # and a column's


@dataclass(frozen=True)
class Predictions:
    """Logits of many images, joined by `image_id` and never by row.

    image_id: [N] text · logits: [N, K] float32 · label: [N], -1 where unknown · fold: [N], the fold
    whose model made the row, -1 for an average over models · features: [N, D] float32 or None ·
    columns: what data.columns keeps beside each image, [N] text by name · distance: [N] float32 or
    None, to what the head compares features with
    """

    image_id: np.ndarray
    logits: np.ndarray
    label: np.ndarray
    fold: np.ndarray
    features: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    distance: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything by the name it has in an .npz, [N, …] each; `from_arrays` is the way back."""
        found = {name: getattr(self, name) for name in ARRAYS}
        found |= {COLUMN + name: values for name, values in self.columns.items()}
        return {name: array for name, array in found.items() if array is not None}

    def with_logits(self, logits: np.ndarray, distance: np.ndarray | None = None) -> "Predictions":
        """The same images with the logits [N, K] of another head and its distance [N], without the
        features."""
        return replace(self, logits=logits, distance=distance, features=None)

    def save(self, path: Path) -> Path:
        """Write an .npz, sorted by image_id."""
        ids = self.image_id.astype(str)
        order = slice(None) if is_sorted(ids) else np.argsort(ids, kind="stable")
        typed = {
            name: array[order].astype(ARRAYS.get(name, TEXT)[0], copy=False)
            for name, array in self.arrays().items()
        }
        return write_arrays(path, **typed)

    def take(self, image_ids) -> "Predictions":
        """Rows in the order of `image_ids`. Errors: UserError unless both are the same set."""
        ids = np.asarray(image_ids).astype(str)
        check_same_ids(self.image_id, ids, "predictions", "the images asked for")
        order = np.argsort(self.image_id, kind="stable")
        return self.rows(order[np.searchsorted(self.image_id, ids, sorter=order)])

    def rows(self, which: np.ndarray) -> "Predictions":
        """Some rows, by number or by a mask [N]."""
        return from_arrays({name: array[which] for name, array in self.arrays().items()})


def network_file(network: str, head: str) -> str:
    """Below predict/, the logits of one network alone, which predict.keep_networks asks for."""
    return f"networks/{network}/{head}.npz"


def from_arrays(arrays: dict[str, np.ndarray]) -> Predictions:
    """What `Predictions.arrays` gave."""
    columns = {n.removeprefix(COLUMN): a for n, a in arrays.items() if n.startswith(COLUMN)}
    return Predictions(**{name: arrays.get(name) for name in ARRAYS}, columns=columns)


def load_predictions(path: Path, num_classes: int) -> Predictions:
    """Errors: UserError for a damaged file, missing arrays or such of another kind, duplicate ids,
    non-finite logits or another K."""
    arrays = _read(path, ("image_id", "logits", "label", "fold"))
    check_unique(arrays["image_id"], path)
    shape = arrays["logits"].shape
    if shape != (len(arrays["image_id"]), num_classes):
        raise UserError(
            f"{path}: logits have shape {shape}, expected [{len(arrays['image_id'])}, "
            f"{num_classes}] (classes.csv has {num_classes} classes)"
        )
    if not all(np.isfinite(arrays["logits"][part]).all() for part in chunks(*shape)):
        raise UserError(f"{path}: logits hold NaN or infinity; the training has diverged")
    loaded = from_arrays(arrays)
    ids = loaded.image_id
    return loaded if is_sorted(ids) else loaded.take(np.sort(ids))


def is_sorted(ids: np.ndarray) -> bool:
    """Whether nothing is left to do: a copy of the logits may be gigabytes."""
    return bool((ids[:-1] <= ids[1:]).all())


def _read(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of a file. Errors: UserError unless all `names` are there, and every array of
    ours has its kind and dimensions and as many rows as there are ids."""
    arrays = read_arrays(checked(path))
    again = "delete it and run the script that writes it again"
    if missing := sorted(set(names) - arrays.keys()):
        raise UserError(f"{path}: arrays {some(missing)} are missing; {again}")
    rows = arrays["image_id"].size
    for name, array in arrays.items():
        if name not in ARRAYS and not name.startswith(COLUMN):
            continue
        _, kinds, dimensions, expected = ARRAYS.get(name, TEXT)
        if array.dtype.kind not in kinds or array.ndim != dimensions or len(array) != rows:
            raise UserError(
                f"{path}: {name} is {array.dtype} {list(array.shape)}, expected {expected} with "
                f"N = {rows} ids; {again}"
            )
    return arrays


def stack(parts: list[Predictions], logits: Iterable[np.ndarray] | None = None) -> Predictions:
    """The rows of all parts, sorted by image_id; features where all have them, equally wide, and
    distances where all have them.

    logits: of each part [n, K], one after the other as they are made, in the place of its own;
    features are then left out. Errors: UserError when an image is in two parts, or they do not
    carry the same columns.
    """
    carried = [sorted(p.columns) for p in parts]
    if any(names != carried[0] for names in carried):
        raise UserError(
            f"predictions to be joined carry different columns: {some(carried)}. Run 02 and 03 "
            "again with --overwrite, so that all are made from the folds.csv there is now."
        )
    widths = {None if p.features is None else p.features.shape[1] for p in parts}
    if logits is not None or len(widths) > 1:
        parts = [replace(p, features=None) for p in parts]
    if any(p.distance is None for p in parts):
        parts = [replace(p, distance=None) for p in parts]
    arrays = [p.arrays() for p in parts]
    large = {"logits": (p.logits for p in parts) if logits is None else logits}
    if parts[0].features is not None:
        large["features"] = (p.features for p in parts)
    small = {n: np.concatenate([a[n] for a in arrays]) for n in arrays[0].keys() - large.keys()}
    check_unique(small["image_id"], "out-of-fold predictions")
    order = np.argsort(small["image_id"], kind="stable")
    place = np.argsort(order)
    joined = {name: array[order] for name, array in small.items()}
    return from_arrays(joined | {name: _placed(rows, place) for name, rows in large.items()})


def _placed(parts: Iterable[np.ndarray], place: np.ndarray) -> np.ndarray:
    """[N, C] of parts [n, C]; place: [N] numbers of their rows in it, one part after the other."""
    out, first = None, 0
    for part in parts:
        out = space((len(place), part.shape[1]), part.dtype) if out is None else out
        out[place[first : first + len(part)]] = part
        first += len(part)
    return out


def save_features(path: Path, image_id: np.ndarray, features: np.ndarray) -> Path:
    """image_id: [N] · features: [N, D]; written sorted by image_id."""
    order = slice(None) if is_sorted(image_id) else np.argsort(image_id, kind="stable")
    rows = features[order].astype(np.float32, copy=False)
    return write_arrays(path, image_id=image_id[order].astype(str, copy=False), features=rows)


def load_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N], sorted, and features [N, D]. Errors: UserError for a damaged file."""
    arrays = _read(path, ("image_id", "features"))
    ids, features = arrays["image_id"], arrays["features"]
    if is_sorted(ids):
        return ids, features
    order = np.argsort(ids, kind="stable")
    return ids[order], features[order]
