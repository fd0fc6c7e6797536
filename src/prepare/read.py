"""The competition's files as two plain tables: the reader of each source, what all must hold."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from src.artifacts.files import read_table
from src.artifacts.ids import check_unique
from src.config.data import Data
from src.config.submission import Submission
from src.errors import UserError, some
from src.prepare.classes import class_order
from src.prepare.coco import read_coco
from src.prepare.columns import with_columns
from src.prepare.csv_tables import read_csv_tables
from src.prepare.digits import write_digits
from src.prepare.folder import read_folder
from src.prepare.lists import read_lists
from src.prepare.observations import asked_ids, check_observations
from src.prepare.sources import Asked, Source, check_names, check_rows, read_asked, require_columns
from src.prepare.torchvision_sets import write_torchvision
from src.submission.format import Sheet
from src.submission.probabilities import find_prefix
from src.submission.recognise import (
    WITHOUT,
    known_ids,
    read_sample,
    recognise,
    without_sample,
)
from src.submission.solution import true_classes

READERS: dict[str, Callable[[Data, Asked], Source]] = {
    "folder": read_folder,
    "csv": read_csv_tables,
    "list": read_lists,
    "coco": read_coco,
    "torchvision": read_folder,
    "digits": read_folder,
}
# sources that are first written to data.root, as the folders that are then read
WRITERS: dict[str, Callable[[Data], None]] = {
    "torchvision": write_torchvision,
    "digits": lambda data: write_digits(Path(data.root)),
}


def read_source(data: Data, keys: Submission | None = None) -> Source:
    """Read the tables of the source that `data.source` names.

    keys: the section `submission`, by default that of an empty config.
    Errors: UserError for missing directories or files, classes without an id or without images,
    ids that occur twice, names that no table can hold, tables without rows, ids of the sample
    submission or the solution that match nothing, a sample in no known format, columns of
    data.columns that a table lacks.
    """
    keys = keys or Submission()
    if data.source in WRITERS:
        WRITERS[data.source](data)
    source = READERS[data.source](data, read_asked(data, keys))
    if source.solution or data.solution is None:
        source = replace(source, truth=None)
    for table, part in ((source.train, "train"), (source.test, "test")):
        for column in ("image_id", "path", "class_id", "class_name"):
            check_names(table.get(column, ()), f"{part} images of {data.root}")
    check_unique(source.train["image_id"], f"train images of {data.root}")
    check_unique(source.test["image_id"], f"test images of {data.root}")
    source = with_columns(data, source)
    check_observations(data, source)
    source = replace(source, sheet=_sheet(source, keys))
    asked_for = asked_ids(data, source)
    known = known_ids(source.train["class_id"].unique().tolist(), keys)
    if source.solution:
        _check_solution(source, read_table(source.solution), source.solution, known, asked_for)
    elif source.truth is not None:
        truth = source.truth.assign(image_id=source.truth["image_id"].map(asked_for))
        truth = truth.drop_duplicates(ignore_index=True)
        source = replace(source, truth=truth.set_axis(source.columns, axis=1))
        where = f"labelled test images of {data.root}"
        _check_solution(source, source.truth, where, known, asked_for)
    return source


def _sheet(source: Source, keys: Submission) -> Sheet:
    """How the submission is made up, told from the sample where there is one."""
    if source.sample_submission is None:
        return without_sample(("image_id", "class_id"), keys, keys.format or WITHOUT)
    classes = class_order(source.train["class_id"])
    return recognise(read_sample(source.sample_submission, classes, keys), classes, keys)


def _check_solution(
    source: Source, table: pd.DataFrame, path: Path | str, known: list[str], asked_for: pd.Series
) -> None:
    """known: class ids that may be true of a test image · asked_for: see `asked_ids`"""
    id_column, label = source.columns
    wanted = {"sample_submission": id_column}
    if source.sheet.format == WITHOUT and find_prefix(list(table), known) is None:
        wanted["label_column"] = label
    require_columns(table, wanted, path)
    check_rows(table, path, "the class of a test image", ", or set data.solution=null")
    truth = true_classes(table, path, source.sheet.facts(), known)
    for column, name, there, whose in (
        ("image_id", id_column, asked_for, "test images"),
        ("class_id", label, known, "train classes"),
    ):
        unknown = sorted(set(truth[column]) - set(there))
        if unknown:
            raise UserError(
                f"{path}: {len(unknown)} values of {name!r} are not among the {whose}: "
                f"{some(unknown)}. Correct them, or set data.solution=null."
            )
