"""The competition's files as two plain tables: the reader of each source, what all must hold."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from src.artifacts.files import read_table
from src.artifacts.ids import check_unique
from src.config.data import Data
from src.errors import UserError, some
from src.prepare.coco import read_coco
from src.prepare.columns import with_columns
from src.prepare.csv_tables import read_csv_tables
from src.prepare.digits import write_digits
from src.prepare.folder import read_folder
from src.prepare.lists import read_lists
from src.prepare.sources import Source, check_names, check_rows, require_columns
from src.prepare.torchvision_sets import write_torchvision

READERS: dict[str, Callable[[Data], Source]] = {
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


def read_source(data: Data) -> Source:
    """Read the tables of the source that `data.source` names.

    Errors: UserError for missing directories or files, classes without an id or without images,
    ids that occur twice, names that no table can hold, tables without rows, ids of the sample
    submission or the solution that match nothing, columns of data.columns that a table lacks.
    """
    if data.source in WRITERS:
        WRITERS[data.source](data)
    source = READERS[data.source](data)
    if source.solution or data.solution is None:
        source = replace(source, truth=None)
    for table, part in ((source.train, "train"), (source.test, "test")):
        for column in ("image_id", "path", "class_id", "class_name"):
            check_names(table.get(column, ()), f"{part} images of {data.root}")
    check_unique(source.train["image_id"], f"train images of {data.root}")
    check_unique(source.test["image_id"], f"test images of {data.root}")
    source = with_columns(data, source)
    if source.solution:
        _check_solution(source, read_table(source.solution), source.solution)
    elif source.truth is not None:
        _check_solution(source, source.truth, f"labelled test images of {data.root}")
    return source


def _check_solution(source: Source, table: pd.DataFrame, path: Path | str) -> None:
    require_columns(
        table, {"sample_submission": source.columns[0], "label_column": source.columns[1]}, path
    )
    check_rows(table, path, "the class of a test image", ", or set data.solution=null")
    check_unique(table[source.columns[0]], path)
    for column, known, whose in (
        (source.columns[0], source.test["image_id"], "test images"),
        (source.columns[1], source.train["class_id"], "train classes"),
    ):
        unknown = sorted(set(table[column]) - set(known))
        if unknown:
            raise UserError(
                f"{path}: {len(unknown)} values of {column!r} are not among the {whose}: "
                f"{some(unknown)}. Correct them, or set data.solution=null."
            )
