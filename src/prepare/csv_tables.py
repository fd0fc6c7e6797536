"""Source `csv`: tables with a column of image ids and one of class ids, or one of 0 and 1 for each
class, and image directories.

The file of an image is <root>/<train_images>/<id><suffix>; an id may hold directories itself. With
the suffix `*` it is the one image of that name anywhere below <train_images>. In place of a table
of test images a directory of them will do.
"""

import itertools
from pathlib import Path, PurePosixPath

import pandas as pd

from src import cli
from src.artifacts.files import read_table
from src.artifacts.ids import check_unique
from src.config.data import Data
from src.errors import UserError, some
from src.prepare.folder import image_files, read_test, without_ending
from src.prepare.one_hot import classes_of
from src.prepare.sources import (
    LOST,
    Asked,
    Source,
    check_filled,
    check_rows,
    image_paths,
    in_submission_order,
    portable,
    require_columns,
    source_file,
    source_of_tables,
)

ANY = "*"  # data.suffix
ONE = "Expected one row per image, which has one class: remove the others"


def read_csv_tables(data: Data, submission: Asked) -> Source:
    """Errors: UserError for a missing table or column, a table without rows, empty or repeated
    ids, rows without a file, and a test table whose ids are not those of the sample submission."""
    train_path = source_file(data, "train", "table")
    asked = {"image_column": data.image_column}
    asked |= {} if data.one_hot else {"label_column": data.label_column}
    asked |= {"name_column": data.name_column} if data.name_column else {}
    asked |= {"group_column": data.group_column} if data.group_column else {}
    table = _read(train_path, asked)
    if data.one_hot:
        no_class = {data.image_column, data.group_column, *data.columns}
        classes = classes_of(table, no_class, train_path)
    else:
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
    fields = {"train": table.set_index(data.image_column, drop=False)}
    fields |= {"test": said} if test_path else {}
    tables = (train, train_path), (test, test_path)
    return source_of_tables(data, *tables, submission, fields=fields)


def _read_test(data: Data, submission: Asked) -> tuple[pd.DataFrame, Path | None, pd.DataFrame]:
    """image_id and path of the test images; the table's file; and all it says, by image id."""
    if data.test is None:
        return pd.DataFrame({"image_id": [], "path": []}, dtype=str), None, pd.DataFrame()
    if (Path(data.root) / data.test).is_dir():
        return read_test(Path(data.root) / data.test, submission)[0], None, pd.DataFrame()
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
    check_unique(table[columns["image_column"]], path, ONE)
    return table


def _paths(data: Data, key: str, ids: pd.Series, table: Path) -> list[str]:
    ids = ids.str.replace("\\", "/", regex=False)  # as Windows writes paths
    if data.suffix == ANY:
        return _found(data, key, ids, table)
    named = "<id><suffix>, with data.suffix (for example .jpg),"
    return image_paths(data, key, ids + data.suffix, table, named)


def _found(data: Data, key: str, ids: pd.Series, table: Path) -> list[str]:
    """Of each id the one image of that name, with or without ending. Where no id is found so,
    all ids are looked up without their first directory, then without the second …, and then the
    same without their endings. Errors: UserError for ids with none or several, and for images with
    several ids."""
    directory = Path(data.root) / getattr(data, key)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; data.{key} names it")
    files, _ = image_files(directory)
    of_id: dict[str, list[str]] = {}
    for file in files:
        path = PurePosixPath(file)
        for name in {path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem}:
            of_id.setdefault(name, []).append(file)
    depth = max((image_id.count("/") for image_id in ids), default=0)
    for ending, parts in itertools.product((str, without_ending), range(depth + 1, 0, -1)):
        short = {image_id: ending("/".join(image_id.split("/")[-parts:])) for image_id in ids}
        found = {image_id: of_id.get(short[image_id], []) for image_id in ids}
        if any(found.values()):
            break
    owner: dict[str, list[str]] = {}
    for image_id, there in found.items():
        owner.setdefault(there[0] if there else "", []).append(image_id)
    shared = [file for file, several in owner.items() if file and len(several) > 1]
    for count, what in ((0, "no image"), (2, "several images")):
        odd = [i for i, there in found.items() if (len(there) > 1 if count else not there)]
        if odd:
            one = f": {some(found[odd[0]])}" if count else ""
            raise UserError(
                f"{table}: {len(odd)} of {len(found)} ids have {what} below {directory}: "
                f"{some(odd)}{one}. Correct data.{key}, or complete the download{LOST}."
            )
    if shared:
        raise UserError(
            f"{table}: {len(shared)} images below {directory} have several ids, such as "
            f"{some(owner[shared[0]])} for {shared[0]}. Correct the ids, or data.{key}."
        )
    if other := next((image_id for image_id in ids if short[image_id] != image_id), None):
        cli.say(
            f"{table}: no image below {directory} has the name of an id as it is written, so "
            f"{other!r} is taken for {found[other][0]}, and all others alike"
        )
    return [f"{portable(directory)}/{found[image_id][0]}" for image_id in ids]
