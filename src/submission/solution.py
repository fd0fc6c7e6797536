"""True classes of test images, however a competition writes them down.

`id, class` whatever the submission's format is; several ids in a cell; a column per class, 1 for
the true one, or probabilities; a row per image and class with a value.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from src.artifacts.dataset import Dataset
from src.artifacts.files import read_json, read_table
from src.artifacts.ids import check_unique
from src.artifacts.work import MANIFEST, checked
from src.errors import UserError, some
from src.fusion.decision import Decision
from src.metrics import PROBABILITIES, metric_of
from src.submission.format import words_of
from src.submission.probabilities import class_columns, find_prefix
from src.submission.write import COLUMNS

PLAIN = Decision("accuracy", "", "the largest probability")


def find_solution(dataset: Dataset, path: str | Path | None) -> Path | None:
    """`path`, or the solution that 01 found. Errors: UserError when `path` is no file."""
    found = path or read_json(dataset.directory / MANIFEST).get("solution")
    if path and not Path(path).is_file():
        raise UserError(f"{path}: no such solution file")
    return Path(found) if found and Path(found).is_file() else None


def score_solution(
    logits: np.ndarray,
    image_id: np.ndarray,
    dataset: Dataset,
    path: Path,
    decision: Decision | None = None,
    *,
    unknown: tuple[str, np.ndarray] | None = None,
) -> tuple[dict[str, float], int]:
    """Scores on the test images that the solution knows, decided as `decision` says, and how many
    those are. Of an image with several true classes, the one that is ranked highest counts.

    unknown: id of the unknown class, and which images [M] are said to be of it. It is then class
    K + 1, and what judges probabilities is left out, for nothing says how likely it is.
    Errors: UserError for a missing column, ids twice or not in the test set, unknown class ids.
    """
    told = read_json(dataset.directory / MANIFEST, COLUMNS)["submission"]
    classes = dataset.classes
    known, bins = classes["class_id"].tolist(), classes["bin"].to_numpy()
    decision = decision or PLAIN
    scores = decision.apply(logits)
    if unknown is not None:
        known, bins = [*known, unknown[0]], np.append(bins, "unknown")
        logits, scores = (with_unknown(z, unknown[1]) for z in (logits, scores))
    truth = true_classes(read_table(checked(path)), path, told, known)
    strange = sorted(set(truth["image_id"]) - set(image_id.tolist()))
    if strange:
        raise UserError(f"{path}: {len(strange)} ids are no test images: {some(strange)}")
    if truth.empty:
        raise UserError(f"{path}: has no rows")
    labels = pd.Index(known).get_indexer(truth["class_id"])
    if (labels < 0).any():
        wrong = sorted(set(truth.loc[labels < 0, "class_id"]))
        raise UserError(f"{path}: class ids {some(wrong)} are not in classes.csv")
    rows = pd.Index(image_id).get_indexer(truth["image_id"])
    best = pd.DataFrame({"row": rows, "label": labels, "z": -logits[rows, labels]})
    best = best.sort_values(["z", "label"], kind="stable").drop_duplicates("row").sort_values("row")
    rows, labels = best["row"].to_numpy(), best["label"].to_numpy()
    if unknown is not None and metric_of(decision.metric).of == PROBABILITIES:
        decision = PLAIN
    score = decision.summary(logits[rows], scores[rows], labels, bins)
    if unknown is not None:
        score = {name: value for name, value in score.items() if name not in ("nll", "ece")}
    return score, len(rows)


def with_unknown(logits: np.ndarray, flagged: np.ndarray) -> np.ndarray:
    """[M, K + 1]: the unknown class above all others where an image is flagged, else below."""
    z = np.where(flagged, logits.max(1) + 1, logits.min(1) - 1)
    return np.concatenate([logits, z[:, None].astype(logits.dtype)], axis=1)


def true_classes(
    table: pd.DataFrame, origin: Path | str, told: dict, known: list[str]
) -> pd.DataFrame:
    """image_id, class_id: a row for every true class of an image, in the order of the table.

    told: what 01 says of the submission: id_column, label_column, and the format · known: class
    ids; others are given back as they are.
    Errors: UserError for columns that are missing, and images that are there twice.
    """
    id_column, label = told["id_column"], told["label_column"]
    if id_column not in table:
        raise UserError(f"{origin}: columns {some([id_column])} are missing; it has {list(table)}")
    ids = table[id_column]
    value = _value_column(table, told, known)
    if value is not None:
        return _of_rows(table, id_column, *value, origin)
    check_unique(ids, origin)
    others = [name for name in table if name != id_column]
    prefix = find_prefix(others, known)
    if label not in table and prefix is not None:
        names = class_columns(others, prefix, known)
        return _of_columns(table, ids, names, prefix, origin)
    if label not in table and told.get("format", "label") != "label":
        sure = set(known)
        of_ids = (n for n in others if set(table[n]) <= sure or words_of(table[n]) <= sure)
        label = next(of_ids, label)
    if label not in table:
        raise UserError(f"{origin}: columns {some([label])} are missing; it has {list(table)}")
    words = [_words(cell, set(known)) for cell in table[label]]
    pairs = pd.DataFrame({"image_id": ids, "class_id": words}, dtype=object)
    return pairs.explode("class_id", ignore_index=True).astype(str)


def _words(cell: str, known: set[str]) -> list[str]:
    """The class ids of a cell; the cell where it is one id, or holds anything else."""
    words = cell.split()
    return words if cell not in known and len(words) > 1 and known.issuperset(words) else [cell]


def _value_column(table: pd.DataFrame, told: dict, known: list[str]) -> tuple[str, str] | None:
    """The columns of class ids and of values where images have several rows; None: it is not so."""
    if not table[told["id_column"]].duplicated().any():
        return None
    others = [name for name in table if name != told["id_column"]]
    labels = [n for n in others if set(table[n]) <= set(known)
              and not table[[told["id_column"], n]].duplicated().any()]  # fmt: skip
    label = told["label_column"] if told["label_column"] in labels else (labels or [None])[0]
    values = [n for n in others if n != label and pd.to_numeric(table[n], "coerce").notna().all()]
    if label is None or not values:
        return None
    asked = told.get("value_column")
    return label, asked if asked in values else values[0]


def _of_rows(table: pd.DataFrame, id_column: str, label: str, value: str, origin) -> pd.DataFrame:
    """Of each image, the rows with its largest value."""
    size = pd.to_numeric(table[value])
    largest = size.groupby(table[id_column]).transform("max")
    _check_true(table.loc[largest <= 0, id_column], origin)
    found = table.loc[size == largest, [id_column, label]]
    return found.set_axis(["image_id", "class_id"], axis=1).reset_index(drop=True)


def _of_columns(table, ids: pd.Series, names: list[str], prefix: str, origin) -> pd.DataFrame:
    """Of each image, the classes of the columns with its largest value."""
    try:
        size = table[names].to_numpy(np.float64)
    except ValueError as error:
        raise UserError(f"{origin}: columns of classes should hold numbers: {error}") from error
    largest = size.max(1, keepdims=True)
    _check_true(ids[~(largest[:, 0] > 0)], origin)
    row, column = np.nonzero(size == largest)
    class_ids = np.array([n.removeprefix(prefix) for n in names], dtype=object)[column]
    return pd.DataFrame({"image_id": ids.to_numpy()[row], "class_id": class_ids})


def _check_true(without: pd.Series, origin) -> None:
    if len(without):
        lost = sorted(set(without))
        raise UserError(f"{origin}: {len(lost)} images have no true class: {some(lost)}")
