"""A prepared dataset: the tables that 01 wrote, and the folds that later stages go by.

folds.csv    image_id, path, class_id, label, fold, group_id, width, height, sha1, phash
             and the columns that data.columns names, as test.csv has them
classes.csv  label, class_id, class_name, count, bin; row i is label i
test.csv     image_id, path, … in submission order
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.artifacts.files import read_json, read_table, sha256
from src.artifacts.ids import check_unique
from src.artifacts.work import MANIFEST, RUNS, checked
from src.config.data import OURS
from src.errors import UserError, some
from src.metrics import bin_numbers

ALWAYS_TRAIN = -1
INPUTS = {"inputs": dict}  # what `check_same_folds` needs of a manifest
FULL = "full"  # name of the network that is trained on every image


@dataclass(frozen=True)
class Classes:
    """What is known about the labels, for networks, losses and heads.

    num: K · bins: number of each label's bin, [K], 0 the most frequent · names: of the classes, [K]
    · counts: training images per label, [K], of the subset that is trained on · text: unit vectors
    of what the classes are called, [K, E] float32, where a section of the config has the trait
    `text` (src/language)
    """

    num: int
    bins: np.ndarray
    names: tuple[str, ...]
    counts: np.ndarray
    text: np.ndarray | None = None

    @property
    def num_bins(self) -> int:
        return int(self.bins.max()) + 1


class LabelText(NamedTuple):
    """rows: `Classes.text` · path: the file that they are from"""

    rows: np.ndarray
    path: Path


@dataclass(frozen=True)
class Dataset:
    """The tables that 01 wrote. `images` is sorted by image_id, `classes` by label. text: made of
    the names by src/language, where it is needed · chosen: networks that take part, folds and None
    for `full`; None: all (`--folds` of the scripts)"""

    directory: Path
    images: pd.DataFrame
    classes: pd.DataFrame
    test: pd.DataFrame
    text: LabelText | None = None
    chosen: tuple[int | None, ...] | None = None

    @property
    def num_classes(self) -> int:
        """K, from classes.csv and never from the labels present."""
        return len(self.classes)

    @property
    def every_fold(self) -> list[int]:
        return sorted(set(self.images["fold"]) - {ALWAYS_TRAIN})

    @property
    def folds(self) -> list[int]:
        """Those that take part."""
        return [k for k in self.every_fold if self.chosen is None or k in self.chosen]

    def choose(self, folds: list[str]) -> "Dataset":
        """What `--folds` asks for alone; nothing: all. Errors: UserError for a fold that is none"""
        if not folds:
            return self
        return replace(self, chosen=tuple(parse_fold(text, self) for text in folds))

    def numbered(self, script: str) -> "Dataset":
        """Itself. Errors: UserError where `--folds` names nothing that holds images out."""
        if not self.folds:
            raise UserError(
                f"--folds {FULL}: it holds no images out, and {script} goes by those; name "
                f"numbers of {self.every_fold}, too"
            )
        return self

    def training(self, fold: int | None) -> pd.DataFrame:
        """Images that fold `fold` trains on; None: all of them (`full`)."""
        return self.images if fold is None else self.images[self.images["fold"] != fold]

    def held_out(self, fold: int) -> pd.DataFrame:
        return self.images[self.images["fold"] == fold]

    def counts(self, images: pd.DataFrame) -> np.ndarray:
        """Images per label in a subset, [K]."""
        return np.bincount(images["label"].to_numpy(), minlength=self.num_classes)

    def classes_of(self, images: pd.DataFrame) -> Classes:
        """What is known about the labels when these images are trained on."""
        bins, names = bin_numbers(self.classes["bin"]), tuple(self.classes["class_name"])
        text = None if self.text is None else self.text.rows
        return Classes(self.num_classes, bins, names, self.counts(images), text)

    def text_input(self) -> dict[str, Path]:
        """For `Work`: the file of the label text, if there is one."""
        return {} if self.text is None else {"text": self.text.path}


def parse_fold(text: str, data: Dataset) -> int | None:
    """None: `full`. Errors: UserError for what is neither that nor one of the folds."""
    if text == FULL:
        return None
    if text not in map(str, data.every_fold):  # int() also takes "٣", and fails for "²"
        raise UserError(f"--folds {text}: expected numbers of {data.every_fold} or `{FULL}`")
    return int(text)


def own_columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """What data.columns names, of the images in a part of folds.csv or test.csv: [N] text each."""
    return {name: table[name].to_numpy(dtype=str) for name in table.columns if name not in OURS}


def dataset_dir(name: str) -> Path:
    return RUNS / name / "folds"


def load_dataset(name: str) -> Dataset:
    """Errors: UserError when 01 has not finished, or its tables are damaged or contradict."""
    directory = dataset_dir(name)
    if not (directory / MANIFEST).is_file():
        raise UserError(
            f"{directory / MANIFEST} is missing (working directory {Path.cwd()}). Run `python "
            "01_prepare_folds.py` with the same --config first, or start this where that was run."
        )
    numbers, texts = ("label", "fold", "width", "height"), ("image_id", "path")
    images = _table(directory / "folds.csv", numbers, texts).sort_values("image_id", kind="stable")
    named = ("class_id", "class_name", "bin")
    classes = _table(directory / "classes.csv", ("label", "count"), named).sort_values("label")
    test = _table(directory / "test.csv", (), texts)
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


def _table(path: Path, numbers: tuple[str, ...], texts: tuple[str, ...]) -> pd.DataFrame:
    """Errors: UserError for a missing column, or a cell of `numbers` that is no whole number."""
    table = read_table(checked(path), numbers)
    for column in texts:
        if column not in table:
            raise UserError(f"{path}: column {column!r} is missing; run 01 again with --overwrite")
    for column in numbers:
        if len(table) and table[column].dtype.kind != "i":
            raise UserError(
                f"{path}: column {column!r} should hold whole numbers; run 01 again with "
                "--overwrite"
            )
    return table


def check_same_folds(manifest: dict, dataset: Dataset, origin: Path) -> None:
    """Errors: UserError when an artifact was made from another folds.csv than the one there now."""
    now = sha256(dataset.directory / "folds.csv")
    if manifest["inputs"].get("folds.csv") != now:
        raise UserError(
            f"{origin}: made from a different folds.csv than {dataset.directory / 'folds.csv'}; "
            "images it calls held-out may have been trained on. Run 02 again with --overwrite, or "
            "bring back the old folds."
        )


def fold_name(fold: int | None) -> str:
    """Of a fold's directory; None: of `full`."""
    return FULL if fold is None else f"fold{fold}"


def fold_of(stage1: Path) -> int | None:
    """The fold that a network's directory is named after; None for `full`."""
    return None if stage1.name == FULL else int(stage1.name.removeprefix("fold"))


def finished_networks(home: Path, data: Dataset) -> list[Path]:
    """Directories stage1/fold<k> and stage1/full of an experiment that 02 finished, in that order.

    Errors: UserError when there is none, one of `data.chosen` lacks, or one was made from another
    folds.csv.
    """
    every = (*data.folds, *((None,) if data.chosen is None or None in data.chosen else ()))
    found = [home / "stage1" / fold_name(fold) for fold in every]
    lacking = [path.name for path in found if not (path / MANIFEST).is_file()]
    found = [path for path in found if path.name not in lacking]
    if data.chosen is not None and lacking:
        numbers = " ".join(name.removeprefix("fold") for name in lacking)
        raise UserError(
            f"{home / 'stage1'}: {' '.join(lacking)}, which --folds asks for, is not finished. Run "
            f"`python 02_train_stage1.py --folds {numbers}` with the same --config first."
        )
    if not found:
        raise UserError(
            f"{home / 'stage1'} has no finished network. Run `python 02_train_stage1.py` with the "
            "same --config first."
        )
    for path in found:
        check_same_folds(read_json(path / MANIFEST, INPUTS), data, path / MANIFEST)
    return found
