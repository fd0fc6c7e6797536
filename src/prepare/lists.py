"""Source `list`: text files of `path label` lines, as ImageNet-LT, Places-LT and iNaturalist have.

    train/n01440764/n01440764_190.JPEG 0

The path is the image's id and may hold spaces; the label is its class's id and name. A test list
may go without labels; with them, they become the solution.
"""

import re
from pathlib import Path, PurePosixPath

import pandas as pd

from src.artifacts.ids import check_unique
from src.config.data import Data
from src.errors import UserError, read_text, some
from src.prepare.folder import ENDINGS
from src.prepare.sources import (
    Asked,
    Source,
    image_paths,
    in_submission_order,
    source_file,
    source_of_tables,
)

LABELLED = re.compile(r"(?P<path>.*\S)\s+(?P<label>\S+)")
EXPECTED = "`path label` per line, for example `train/n01440764/n01440764_190.JPEG 0`"


def read_lists(data: Data, submission: Asked) -> Source:
    """Errors: UserError for a missing list, lines that are none, train images without a label or
    listed twice, and images that are not there."""
    path = source_file(data, "train", "list")
    train = read_list(path)
    without = train.index[train["class_id"] == ""] + 1
    if len(without):
        raise UserError(
            f"{path}: {len(without)} lines have no label: {some(without.tolist())}. Expected "
            f"{EXPECTED}; correct data.train or the lines."
        )
    check_unique(train["image_id"], path)
    train["path"] = image_paths(data, "train_images", train["image_id"], path, "the paths")
    train["class_name"], train["group"] = train["class_id"], ""
    test, test_path = _read_test(data, submission)
    known = None
    if len(test) and (test["class_id"] != "").all():
        known = test[["image_id", "class_id"]]
    return source_of_tables(data, (train, path), (test, test_path), submission, known)


def _read_test(data: Data, submission: Asked) -> tuple[pd.DataFrame, Path | None]:
    if data.test is None:
        return pd.DataFrame(columns=["image_id", "path", "class_id"], dtype=str), None
    path = source_file(data, "test", "list")
    test = in_submission_order(read_list(path), submission, path)
    test["path"] = image_paths(data, "test_images", test["image_id"], path, "the paths")
    return test, path


def read_list(path: Path) -> pd.DataFrame:
    """image_id and class_id ("" where a line has none) of every line that is not empty. Errors:
    UserError for an empty list and for lines that name no image."""
    lines = read_text(path, EXPECTED).splitlines()
    rows, wrong = {}, []
    for number, line in enumerate(map(str.strip, lines)):
        found = LABELLED.fullmatch(line)
        if found and _is_image(found["path"]):
            rows[number] = (found["path"], found["label"])
        elif _is_image(line):
            rows[number] = (line, "")
        elif line:
            wrong.append(f"line {number + 1}: {line[:60]}")
    if wrong or not rows:
        what = f"{len(wrong)} lines name no image: {some(wrong)}" if wrong else "the list is empty"
        raise UserError(
            f"{path}: {what}. Expected {EXPECTED}; the path must end in one of "
            f"{' '.join(sorted(ENDINGS))}."
        )
    return pd.DataFrame.from_dict(rows, "index", dtype=str, columns=["image_id", "class_id"])


def begins_as_list(path: Path) -> bool:
    """Whether the first line names an image: what does not is left unread, however long."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        line = file.readline(10**4).strip()
    found = LABELLED.fullmatch(line)
    return _is_image(line) or (found is not None and _is_image(found["path"]))


def _is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in ENDINGS
