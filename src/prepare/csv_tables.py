"""Source `csv`: tables with a column of image ids, a column of class ids, and image directories.

The file of an image is <root>/<train_images>/<id><suffix>; an id may hold directories itself.
"""

from pathlib import Path

import pandas as pd

from src.artifacts.files import read_table
from src.artifacts.ids import check_unique
from src.config.data import Data
from src.prepare.sources import (
    Asked,
    Source,
    check_filled,
    check_rows,
    image_paths,
    in_submission_order,
    require_columns,
    source_file,
    source_of_tables,
)


def read_csv_tables(data: Data, submission: Asked) -> Source:
    """Errors: UserError for a missing table or column, a table without rows, empty or repeated
    ids, rows without a file, and a test table whose ids are not those of the sample submission."""
    train_path = source_file(data, "train", "table")
    asked = {"image_column": data.image_column, "label_column": data.label_column}
    asked |= {"name_column": data.name_column} if data.name_column else {}
    asked |= {"group_column": data.group_column} if data.group_column else {}
    table = _read(train_path, asked)
    check_filled(table, data.label_column, train_path)
    classes = table[data.label_column]
    train = pd.DataFrame(
        {
            "image_id": table[data.image_column],
            "path": _paths(data, "train_images", table[data.image_column], train_path),
            "class_id": classes,
            "class_name": table[data.name_column] if data.name_column else classes,
            "group": table[data.group_column] if data.group_column else "",
        },
        dtype=str,
    ).sort_values("image_id", kind="stable", ignore_index=True)
    train["class_name"] = train.groupby("class_id")["class_name"].transform("first")
    test, test_path, said = _read_test(data, submission)
    fields = {"train": table.set_index(data.image_column, drop=False), "test": said}
    tables = (train, train_path), (test, test_path)
    return source_of_tables(data, *tables, submission, fields=fields)


def _read_test(data: Data, submission: Asked) -> tuple[pd.DataFrame, Path | None, pd.DataFrame]:
    """image_id and path of the test images; the table's file; and all it says, by image id."""
    if data.test is None:
        return pd.DataFrame({"image_id": [], "path": []}, dtype=str), None, pd.DataFrame()
    path = source_file(data, "test", "table")
    if submission.ids is not None and path.samefile(submission.path):
        ids = pd.Series(submission.ids, dtype=str)
        said = read_table(path).drop_duplicates(submission.id_column)
        said = said.set_index(submission.id_column, drop=False)
    else:
        table = _read(path, {"image_column": data.image_column})
        ids = table[data.image_column]
        said = table.set_index(data.image_column, drop=False)
    ids = in_submission_order(pd.DataFrame({"image_id": ids}), submission, path)["image_id"]
    paths = _paths(data, "test_images", ids, path)
    return pd.DataFrame({"image_id": ids, "path": paths}, dtype=str), path, said


def _read(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    table = read_table(path)
    require_columns(table, columns, path)
    check_rows(table, path, "one row per image")
    check_filled(table, columns["image_column"], path)
    check_unique(table[columns["image_column"]], path)
    return table


def _paths(data: Data, key: str, ids: pd.Series, table: Path) -> list[str]:
    named = "<id><suffix>, with data.suffix (for example .jpg),"
    return image_paths(data, key, ids + data.suffix, table, named)
