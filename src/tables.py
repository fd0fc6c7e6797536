"""What the stages hand over: the dataset's tables, and predictions. Everything joins by `image_id`.

folds.csv    image_id, path, class_id, label, fold, group_id, width, height, sha1, phash
classes.csv  label, class_id, class_name, count, bin; row i is label i
test.csv     image_id, path, … in submission order
*.npz        image_id, logits [N, K], label (-1 unknown), fold, features [N, D] where they exist
head.safetensors   weight [K, D] and bias [K] (linear), scale [] (cosine), or bias and center [D]
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from src.artifacts import (
    MANIFEST,
    RUNS,
    read_arrays,
    read_json,
    read_table,
    require,
    sha256,
    write_arrays,
    write_bytes,
)
from src.errors import UserError, some

ALWAYS_TRAIN = -1
UNKNOWN = -1
HEAD_ARRAYS = {
    "linear": {"weight", "bias"},
    "cosine": {"weight", "scale"},
    "centred": {"weight", "bias", "center"},
}


@dataclass(frozen=True)
class Dataset:
    """The tables that 01 wrote. `images` is sorted by image_id, `classes` by label."""

    directory: Path
    images: pd.DataFrame
    classes: pd.DataFrame
    test: pd.DataFrame

    @property
    def num_classes(self) -> int:
        """K, from classes.csv and never from the labels present."""
        return len(self.classes)

    @property
    def folds(self) -> list[int]:
        return sorted(set(self.images["fold"]) - {ALWAYS_TRAIN})

    def training(self, fold: int | None) -> pd.DataFrame:
        """Images that fold `fold` trains on; None: all of them (`full`)."""
        return self.images if fold is None else self.images[self.images["fold"] != fold]

    def held_out(self, fold: int) -> pd.DataFrame:
        return self.images[self.images["fold"] == fold]

    def counts(self, images: pd.DataFrame) -> np.ndarray:
        """Images per label in a subset, [K]."""
        return np.bincount(images["label"].to_numpy(), minlength=self.num_classes)


def dataset_dir(name: str) -> Path:
    return RUNS / name / "folds"


def load_dataset(name: str) -> Dataset:
    """Errors: UserError when 01 has not finished, or its tables contradict each other."""
    directory = dataset_dir(name)
    require(directory / MANIFEST, "01_prepare_folds.py")
    numbers = ("label", "fold", "width", "height")
    images = read_table(directory / "folds.csv", numbers).sort_values("image_id", kind="stable")
    classes = read_table(directory / "classes.csv", ("label", "count")).sort_values("label")
    test = read_table(directory / "test.csv")
    if classes["label"].tolist() != list(range(len(classes))):
        raise UserError(f"{directory / 'classes.csv'}: labels must be 0 … K-1; run 01 again")
    outside = images[~images["label"].between(0, len(classes) - 1)]
    if len(outside):
        raise UserError(
            f"{directory / 'folds.csv'}: labels must be 0 … {len(classes) - 1}; images "
            f"{some(outside['image_id'])} have {some(outside['label'].unique())}. Run 01 again."
        )
    for table, file in ((images, "folds.csv"), (test, "test.csv")):
        check_unique(table["image_id"], directory / file)
    return Dataset(directory, images.reset_index(drop=True), classes.reset_index(drop=True), test)


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
    """Errors: UserError for missing arrays, duplicate ids, non-finite logits or another K."""
    arrays = read_arrays(path)
    missing = {"image_id", "logits", "label", "fold"} - arrays.keys()
    if missing:
        raise UserError(f"{path}: arrays {some(sorted(missing))} are missing")
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


def check_unique(ids, origin) -> None:
    """Errors: UserError that names ids that occur twice."""
    values, counts = np.unique(np.asarray(ids, dtype=str), return_counts=True)
    twice = values[counts > 1]
    if len(twice):
        raise UserError(f"{origin}: {len(twice)} image ids occur more than once: {some(twice)}")


def check_same_ids(found, expected, found_name: str, expected_name: str) -> None:
    """Errors: UserError with the counts and examples of what is missing on either side."""
    found, expected = set(map(str, found)), set(map(str, expected))
    if found != expected:
        lacking, extra = sorted(expected - found), sorted(found - expected)
        raise UserError(
            f"{found_name} ({len(found)} images) and {expected_name} ({len(expected)}) differ: "
            f"{len(lacking)} missing ({some(lacking)}), {len(extra)} too many ({some(extra)})"
        )


def check_same_folds(manifest: dict, dataset: Dataset, origin: Path) -> None:
    """Errors: UserError when an artifact was made from another folds.csv than the one there now."""
    now = sha256(dataset.directory / "folds.csv")
    if manifest["inputs"].get("folds.csv") != now:
        raise UserError(
            f"{origin}: made from a different folds.csv than {dataset.directory / 'folds.csv'}; "
            "images it calls held-out may have been trained on. Run 02 again with --overwrite, or "
            "bring back the old folds."
        )


def save_head(path: Path, kind: str, arrays: dict[str, np.ndarray]) -> Path:
    """Write a classifier as safetensors, the same bytes for the same arrays.

    kind and arrays: as in `src.logits.head_logits`.
    Metadata is one JSON text under the key `longtail`: several keys would be written in any order.
    """
    if set(arrays) != HEAD_ARRAYS.get(kind):
        raise ValueError(f"a head of kind {kind!r} cannot be made of {sorted(arrays)}")
    plain = {name: np.array(array, np.float32, order="C") for name, array in arrays.items()}
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
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("longtail", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    kind = facts.get("kind")
    if kind not in HEAD_ARRAYS or set(arrays) != HEAD_ARRAYS[kind]:
        raise UserError(
            f"{path}: not a head: kind {kind!r} with arrays {sorted(arrays)}, expected one of "
            f"{ {k: sorted(v) for k, v in HEAD_ARRAYS.items()} }; run 02 or 03 again"
        )
    return kind, arrays


def save_features(path: Path, image_id: np.ndarray, features: np.ndarray) -> Path:
    """image_id: [N] · features: [N, D]; written sorted by image_id."""
    order = np.argsort(image_id, kind="stable")
    ids = image_id.astype(str)[order]
    return write_arrays(path, image_id=ids, features=features.astype(np.float32)[order])


def load_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N], sorted, and features [N, D]. Errors: UserError for a damaged file."""
    arrays = read_arrays(path)
    if {"image_id", "features"} - arrays.keys():
        raise UserError(f"{path}: not a file of features; delete it and run 03 again")
    order = np.argsort(arrays["image_id"], kind="stable")
    return arrays["image_id"][order], arrays["features"][order]


def fold_of(stage1: Path) -> int | None:
    """The fold that a network's directory is named after; None for `full`."""
    return None if stage1.name == "full" else int(stage1.name.removeprefix("fold"))


def finished_networks(home: Path, data: Dataset) -> list[Path]:
    """Directories stage1/fold<k> and stage1/full of an experiment that 02 finished, in that order.

    Errors: UserError when there is none, or one was made from another folds.csv.
    """
    names = [*(f"fold{fold}" for fold in data.folds), "full"]
    found = [home / "stage1" / name for name in names]
    found = [path for path in found if (path / MANIFEST).is_file()]
    if not found:
        raise UserError(
            f"{home / 'stage1'} has no finished network. Run `python 02_train_stage1.py` with the "
            "same --config first."
        )
    for path in found:
        check_same_folds(read_json(path / MANIFEST), data, path / MANIFEST)
    return found
