"""The competition's file: original class ids, the sample's columns and order, checked first."""

from pathlib import Path

import numpy as np
import pandas as pd

from src.artifacts.dataset import Dataset
from src.artifacts.files import read_json, read_table
from src.artifacts.ids import check_same_ids, check_unique
from src.artifacts.work import MANIFEST, checked
from src.errors import UserError, some
from src.metrics import summary

COLUMNS = {"submission/id_column": str, "submission/label_column": str}  # in 01's manifest


def submission_table(logits: np.ndarray, image_id: np.ndarray, dataset: Dataset) -> pd.DataFrame:
    """The submission, in the order of the sample submission (without one, of test.csv).

    logits: [M, K] of the images `image_id` [M].
    """
    facts = read_json(dataset.directory / MANIFEST, COLUMNS)
    columns = facts["submission"]
    class_id = dataset.classes["class_id"].to_numpy()[logits.argmax(1)]
    by_id = dict(zip(image_id.tolist(), class_id.tolist(), strict=True))
    order = dataset.test["image_id"].tolist()
    sample = facts.get("sample_submission")
    if sample and Path(sample).is_file():
        order = read_table(sample)[columns["id_column"]].tolist()
    check_same_ids(by_id, order, "predictions", sample or "test.csv")
    return pd.DataFrame(
        {columns["id_column"]: order, columns["label_column"]: [by_id[i] for i in order]}, dtype=str
    )


def check_submission(table: pd.DataFrame, dataset: Dataset) -> None:
    """Errors: UserError unless every test image is there once, with a known class id."""
    ids, classes = table.iloc[:, 0], table.iloc[:, 1]
    check_unique(ids, "submission")
    check_same_ids(ids, dataset.test["image_id"], "submission", "test.csv")
    unknown = sorted(set(classes.fillna("")) - set(dataset.classes["class_id"]))
    if unknown:
        raise UserError(f"submission: class ids {some(unknown)} are not in classes.csv")


def find_solution(dataset: Dataset, path: str | Path | None) -> Path | None:
    """`path`, or the solution that 01 found. Errors: UserError when `path` is no file."""
    found = path or read_json(dataset.directory / MANIFEST).get("solution")
    if path and not Path(path).is_file():
        raise UserError(f"{path}: no such solution file")
    return Path(found) if found and Path(found).is_file() else None


def score_solution(
    logits: np.ndarray, image_id: np.ndarray, dataset: Dataset, path: Path, *also: str
) -> tuple[dict[str, float], int]:
    """Scores on the test images that the solution knows, by the metrics `also` too, and how many
    those are.

    Errors: UserError for a missing column, ids twice or not in the test set, unknown class ids.
    """
    columns = read_json(dataset.directory / MANIFEST, COLUMNS)["submission"]
    table = read_table(checked(path))
    lacking = [c for c in columns.values() if c not in table]
    if lacking:
        raise UserError(f"{path}: columns {some(lacking)} are missing; it has {list(table)}")
    ids = table[columns["id_column"]].to_numpy(str)
    truth = table[columns["label_column"]]
    check_unique(ids, path)
    unknown = sorted(set(ids) - set(image_id.tolist()))
    if unknown:
        raise UserError(f"{path}: {len(unknown)} ids are no test images: {some(unknown)}")
    if not len(ids):
        raise UserError(f"{path}: has no rows")
    classes = dataset.classes
    labels = truth.map(dict(zip(classes["class_id"], classes["label"], strict=True)))
    if labels.isna().any():
        wrong = sorted(set(truth[labels.isna()]))
        raise UserError(f"{path}: class ids {some(wrong)} are not in classes.csv")
    row = {image: i for i, image in enumerate(image_id.tolist())}
    rows = np.array([row[i] for i in ids], dtype=int)
    bins = classes["bin"].to_numpy()
    return summary(logits[rows], labels.to_numpy(int), bins, *also), len(ids)
