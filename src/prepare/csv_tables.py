"""Source `csv`: tables with a column of image ids, a column of class ids, and image directories.

The file of an image is <root>/<train_images>/<id><suffix>; an id may hold directories itself.
"""

import os
from pathlib import Path

import pandas as pd

from src.artifacts import read_table
from src.errors import UserError, some
from src.prepare.sources import (
    Source,
    Submission,
    check_filled,
    nearest_file,
    optional_file,
    portable,
    read_submission,
    require_columns,
)
from src.schema import Data
from src.tables import check_same_ids, check_unique


def read_csv_tables(data: Data) -> Source:
    """Errors: UserError for a missing table or column, empty or repeated ids, rows without a file,
    and a test table whose ids are not those of the sample submission."""
    train_path = _table_path(data, "train")
    asked = {"image_column": data.image_column, "label_column": data.label_column}
    asked |= {"name_column": data.name_column} if data.name_column else {}
    asked |= {"group_column": data.group_column} if data.group_column else {}
    table = _read(train_path, asked)
    check_filled(table, data.label_column, train_path)
    classes = table[data.label_column]
    train = pd.DataFrame(
        {
            "image_id": table[data.image_column],
            "path": _paths(data, data.train_images, table[data.image_column], train_path),
            "class_id": classes,
            "class_name": table[data.name_column] if data.name_column else classes,
            "group": table[data.group_column] if data.group_column else "",
        },
        dtype=str,
    ).sort_values("image_id", kind="stable", ignore_index=True)
    train["class_name"] = train.groupby("class_id")["class_name"].transform("first")
    submission = read_submission(data)
    test, test_path = _read_test(data, submission)
    solution = optional_file(data, "solution") if len(test) else None
    tables = {
        "train": train_path,
        "test": test_path,
        "sample_submission": submission.path,
        "solution": solution,
    }
    return Source(
        train=train,
        test=test,
        columns=submission.columns,
        sample_submission=submission.path,
        solution=solution,
        tables={name: path for name, path in tables.items() if path},
    )


def _read_test(data: Data, submission: Submission) -> tuple[pd.DataFrame, Path | None]:
    if data.test is None:
        return pd.DataFrame({"image_id": [], "path": []}, dtype=str), None
    path = _table_path(data, "test")
    if submission.path and path.samefile(submission.path):
        ids = pd.Series(submission.ids, dtype=str)
    else:
        ids = _read(path, {"image_column": data.image_column})[data.image_column]
    if submission.ids is not None:
        check_same_ids(ids, submission.ids, str(path), str(submission.path))
        ids = pd.Series(submission.ids, dtype=str)
    paths = _paths(data, data.test_images, ids, path)
    return pd.DataFrame({"image_id": ids, "path": paths}, dtype=str), path


def _table_path(data: Data, key: str) -> Path:
    path = Path(data.root) / getattr(data, key)
    if not path.is_file():
        none = ", or set data.test=null if there are no test images" if key == "test" else ""
        raise UserError(
            f"{path}: no such table{nearest_file(path)}. Set data.{key} to a CSV file under "
            f"{data.root}{none}."
        )
    return path


def _read(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    table = read_table(path)
    require_columns(table, columns, path)
    check_filled(table, columns["image_column"], path)
    check_unique(table[columns["image_column"]], path)
    return table


def _paths(data: Data, below: str, ids: pd.Series, table: Path) -> list[str]:
    directory = Path(data.root) / below
    prefix = portable(directory)
    paths = [f"{prefix}/{image_id}{data.suffix}" for image_id in ids]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        near = nearest_file(Path(missing[0]))
        raise UserError(
            f"{table}: {len(missing)} of {len(paths)} rows have no file: {some(missing)}{near}. "
            "Expected <root>/<images directory>/<id><suffix>; correct data.train_images, "
            "data.test_images or data.suffix (for example .jpg), or complete the download."
        )
    return paths
