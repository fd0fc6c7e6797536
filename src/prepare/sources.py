"""Where the images come from. Every source ends in the same two plain tables.

One file per kind of source, one line in the table of src/prepare/read.py. Ids are text from first
to last.
"""

import difflib
import glob
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from src.artifacts.files import read_table
from src.artifacts.ids import check_same_ids, check_unique
from src.config.data import Data
from src.config.submission import Submission
from src.errors import UserError, some
from src.submission.format import Sheet

LOST = ", or, where the images are lost, remove their rows"


@dataclass(frozen=True)
class Source:
    """What a competition's directory holds.

    train: image_id, path, class_id, class_name, group ("" for none), sorted by image_id
    test: image_id, path, in submission order
    tables: the files that were read, by name · notes: lines for the user about what was left out
    truth: image_id and class_id of test images, where no solution file but the test images' own
    folders, list or JSON say them; from `read_source` in the columns of `sheet`
    fields: of train and test, what else their file says of an image: text by column, indexed by
    image id. From `read_source`: the columns of data.columns, in the order of train and test
    sheet: from `read_source`: how the submission is made up
    """

    train: pd.DataFrame
    test: pd.DataFrame
    sample_submission: Path | None
    solution: Path | None
    tables: dict[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    truth: pd.DataFrame | None = None
    fields: dict[str, pd.DataFrame] = field(default_factory=dict)
    sheet: Sheet | None = None

    @property
    def columns(self) -> tuple[str, str]:
        """Of image ids and class ids, in the submission or, where it has none, in a solution."""
        return self.sheet.id_column, self.sheet.label_column


@dataclass(frozen=True)
class Asked:
    """The images that the sample submission asks for, in its order; None where there is none, or
    where it asks for observations."""

    path: Path | None = None
    ids: list[str] | None = None
    id_column: str = "image_id"


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
    """`; there is one in …` or `; did you mean …?` for a path that is missing, or nothing."""
    if not path.parent.is_dir():
        return f" ({path.parent} does not exist either)"
    if below := sorted(path.parent.glob(f"*/{glob.escape(path.name)}")):
        return f"; there is one in {below[0].parent}"
    near = difflib.get_close_matches(path.name, sorted(os.listdir(path.parent)), 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def require_columns(
    table: pd.DataFrame, columns: dict[str, str], path: Path, section: str = "data"
) -> None:
    """Errors: UserError that names a missing column, the key that asks for it, and the nearest."""
    for key, column in columns.items():
        if column not in table:
            there = columns_there(table, column)
            raise UserError(
                f"{path}: column {column!r} ({section}.{key}) is missing; {there} Set "
                f"{section}.{key}."
            )


def columns_there(table: pd.DataFrame, column: str) -> str:
    """`it has […]; did you mean …?`, of a column that is missing."""
    near = difflib.get_close_matches(column, list(table.columns), 1, 0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"it has {list(table.columns)}{hint}"


def check_filled(table: pd.DataFrame, column: str, path: Path) -> None:
    """Errors: UserError that names the rows in which an id is empty."""
    rows = np.flatnonzero(table[column].str.strip() == "") + 2
    if len(rows):
        raise UserError(
            f"{path}: column {column!r} is empty in {len(rows)} lines: {some(rows.tolist())}. "
            "Fill in the ids or remove the lines."
        )


def check_names(names, where) -> None:
    """Errors: UserError for names of files or classes that a table or a list cannot hold: not
    UTF-8, or of several lines."""
    odd = [name for name in names if "\n" in name or "\r" in name or not is_utf8(name)]
    if odd:
        raise UserError(
            f"{where}: {len(odd)} names of files or classes are not UTF-8 or have a line break: "
            f"{some(odd)}. Rename them (old archives: convmv -f latin1 -t utf8 -r --notest)."
        )


def is_utf8(name: str) -> bool:
    """Python keeps the bytes of other encodings as halves of characters."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_rows(table: pd.DataFrame, path: Path, expected: str, otherwise: str = "") -> None:
    """Errors: UserError for a table that has a header and nothing below it."""
    if table.empty:
        raise UserError(
            f"{path}: no rows below the header {list(table.columns)}; expected {expected}. "
            f"Complete the file{otherwise}."
        )


def read_asked(data: Data, keys: Submission) -> Asked:
    """Images and their order, of the column of ids alone; images may have several rows. A sample of
    observations (data.observation) asks for no images.

    Errors: UserError for a table without rows, or with rows without an id.
    """
    path = optional_file(data, "sample_submission")
    if path is None:
        return Asked()
    columns = list(read_table(path, rows=1))
    name = keys.id_column or columns[0]
    require_columns(pd.DataFrame(columns=columns), {"id_column": name}, path, "submission")
    table = read_table(path, only=[name])
    if name == data.observation:  # a row per observation: the test images are for others to list
        return Asked(path, None, name)
    check_rows(table, path, "each test image's id", ", or set data.sample_submission=null")
    check_filled(table, name, path)
    if len(columns) <= 2:  # else a row may be of an image and a class
        check_unique(table[name], path)
    return Asked(path, table[name].drop_duplicates().tolist(), name)


def in_submission_order(test: pd.DataFrame, submission: Asked, origin: Path) -> pd.DataFrame:
    """The rows of `test` (image_id, …) in the order of the sample submission, if there is one.

    Errors: UserError unless both have the same ids.
    """
    if submission.ids is None:
        return test
    check_unique(test["image_id"], origin)
    check_same_ids(test["image_id"], submission.ids, str(origin), str(submission.path))
    return test.set_index("image_id").loc[submission.ids].reset_index()


def source_of_tables(
    data: Data,
    train: tuple[pd.DataFrame, Path],
    test: tuple[pd.DataFrame, Path | None],
    submission: Asked,
    known: pd.DataFrame | None = None,
    fields: dict[str, pd.DataFrame] | None = None,
) -> Source:
    """The source that a train and a test table describe, each beside the file it was read from.

    known: image_id and class_id of test images whose class their own table says · fields: see
    `Source`
    """
    solution = optional_file(data, "solution") if len(test[0]) else None
    tables = {
        "train": train[1],
        "test": test[1],
        "sample_submission": submission.path,
        "solution": solution,
    }
    columns = ["image_id", "path", "class_id", "class_name", "group"]
    said = known is not None and len(known) > 0
    return Source(
        train=train[0][columns].sort_values("image_id", kind="stable", ignore_index=True),
        test=test[0][["image_id", "path"]],
        sample_submission=submission.path,
        solution=solution,
        tables={name: path for name, path in tables.items() if path},
        truth=known if said else None,
        fields=fields or {},
    )


def source_file(data: Data, key: str, kind: str) -> Path:
    """The file under root that `data.<key>` names. Errors: UserError when it is not there."""
    path = Path(data.root) / getattr(data, key)
    if not path.is_file():
        none = ", or set data.test=null if there are no test images" if key == "test" else ""
        raise UserError(
            f"{path}: no such {kind}{nearest_file(path)}. Correct data.root, or set data.{key} to "
            f"a file under it{none}."
        )
    return path


def image_paths(data: Data, key: str, names: pd.Series, table: Path, named: str) -> list[str]:
    """Portable paths of the images `names`, below the directory that `data.<key>` names.

    named: how `names` are written in `table`. Errors: UserError for rows without a file.
    """
    directory = Path(data.root) / getattr(data, key)
    prefix = portable(directory)
    if outside := [name for name in names if name.startswith("/") or ".." in name.split("/")]:
        raise UserError(
            f"{table}: {len(outside)} of {len(names)} rows name files outside {directory}: "
            f"{some(outside)}. Expected {named} under {directory}; correct them, or data.{key}."
        )
    paths = [f"{prefix}/{name}" for name in names]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        near = nearest_file(Path(missing[0]))
        raise UserError(
            f"{table}: {len(missing)} of {len(paths)} rows have no file: {some(missing)}{near}. "
            f"Expected {named} under {directory}; correct data.{key}, or complete the download"
            f"{LOST}."
        )
    return paths


def portable(directory: str | Path) -> str:
    """A directory as tables store it: posix, relative to the current directory when below it."""
    relative = os.path.relpath(directory)
    return Path(os.path.abspath(directory) if relative.startswith("..") else relative).as_posix()
