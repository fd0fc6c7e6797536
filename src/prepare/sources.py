"""Where the images come from. Every source ends in the same two plain tables.

One file per kind of source, one line in `SOURCES`. Ids are text from the first to the last line.
"""

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from src.artifacts import read_table
from src.errors import UserError, some
from src.schema import Data
from src.tables import check_unique


@dataclass(frozen=True)
class Source:
    """What a competition's directory holds.

    train: image_id, path, class_id, class_name, group ("" for none), sorted by image_id
    test: image_id, path, in submission order
    columns: of the submission, id first · tables: the CSV files that were read, by name
    notes: lines for the user about what was left out
    """

    train: pd.DataFrame
    test: pd.DataFrame
    columns: tuple[str, str]
    sample_submission: Path | None
    solution: Path | None
    tables: dict[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Submission:
    """The sample submission, where there is one: its ids in order and its two column names."""

    path: Path | None
    ids: list[str] | None
    columns: tuple[str, str]


def read_source(data: Data) -> Source:
    """Read the tables of the source that `data.source` names.

    Errors: UserError for missing directories or files, classes without an id or without images,
    ids that occur twice, ids of the sample submission or the solution that match nothing.
    """
    from src.prepare.csv_tables import read_csv_tables
    from src.prepare.digits import write_digits
    from src.prepare.folder import read_folder

    if data.source == "digits":
        write_digits(Path(data.root))
    source = read_csv_tables(data) if data.source == "csv" else read_folder(data)
    check_unique(source.train["image_id"], f"train images of {data.root}")
    check_unique(source.test["image_id"], f"test images of {data.root}")
    if source.solution:
        _check_solution(source)
    return source


def optional_file(data: Data, key: str) -> Path | None:
    """The file of a key whose default is used only where it exists.

    Errors: UserError when another file than the default is named and is not there.
    """
    name = getattr(data, key)
    path = Path(data.root) / name if name else None
    if path is None or path.is_file():
        return path
    if name == type(data).model_fields[key].default:
        return None
    raise UserError(f"{path}: no such file{nearest_file(path)}; data.{key} names it")


def nearest_file(path: Path) -> str:
    """`; did you mean …?` for a path that is missing, or nothing."""
    if not path.parent.is_dir():
        return f" ({path.parent} does not exist either)"
    near = difflib.get_close_matches(path.name, sorted(os.listdir(path.parent)), 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def require_columns(table: pd.DataFrame, columns: dict[str, str], path: Path) -> None:
    """Errors: UserError that names a missing column, the key that asks for it, and the nearest."""
    for key, column in columns.items():
        if column not in table:
            near = difflib.get_close_matches(column, list(table.columns), 1, 0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{path}: column {column!r} (data.{key}) is missing; it has "
                f"{list(table.columns)}{hint} Set data.{key}."
            )


def check_filled(table: pd.DataFrame, column: str, path: Path) -> None:
    """Errors: UserError that names the rows in which an id is empty."""
    rows = np.flatnonzero(table[column].str.strip() == "") + 2
    if len(rows):
        raise UserError(
            f"{path}: column {column!r} is empty in {len(rows)} lines: {some(rows.tolist())}. "
            "Fill in the ids or remove the lines."
        )


def read_submission(data: Data) -> Submission:
    """Ids, order and column names that the competition asks for.

    Errors: UserError unless the table has two columns and every id once.
    """
    path = optional_file(data, "sample_submission")
    if path is None:
        return Submission(None, None, ("image_id", "class_id"))
    table = read_table(path)
    if len(table.columns) != 2:
        raise UserError(
            f"{path}: found {len(table.columns)} columns {list(table.columns)}, expected two: the "
            "image's id and its class id. Make such a file, or set data.sample_submission=null."
        )
    columns = (str(table.columns[0]), str(table.columns[1]))
    check_filled(table, columns[0], path)
    check_unique(table[columns[0]], path)
    return Submission(path, table[columns[0]].tolist(), columns)


def portable(directory: str | Path) -> str:
    """A directory as tables store it: posix, relative to the current directory when below it."""
    relative = os.path.relpath(directory)
    return Path(os.path.abspath(directory) if relative.startswith("..") else relative).as_posix()


def _check_solution(source: Source) -> None:
    path, table = source.solution, read_table(source.solution)
    require_columns(
        table, {"sample_submission": source.columns[0], "label_column": source.columns[1]}, path
    )
    check_unique(table[source.columns[0]], path)
    for column, known, whose in (
        (source.columns[0], source.test["image_id"], "test images"),
        (source.columns[1], source.train["class_id"], "train classes"),
    ):
        unknown = sorted(set(table[column]) - set(known))
        if unknown:
            raise UserError(
                f"{path}: {len(unknown)} values of {column!r} are not among the {whose}: "
                f"{some(unknown)}. Correct the file, or set data.solution=null."
            )
