"""The class prior of the leaderboard, as `target_prior` gives it."""

from pathlib import Path

import numpy as np
import pandas as pd

from src.artifacts.dataset import Dataset
from src.artifacts.files import read_table
from src.config.schema import Config
from src.config.target import BALANCED, NAMES, TRAIN
from src.errors import UserError, some

COLUMNS = ("class_id", "prior")
ROUNDING = 1e-3  # by how much the sum of rounded numbers may miss one


def csv_of(config: Config) -> Path | None:
    """The file that `target_prior` names, if it is one."""
    named = config.target_prior is not None and config.target_prior not in NAMES
    return Path(config.data.root) / config.target_prior if named else None


def load_target_prior(config: Config, dataset: Dataset) -> np.ndarray | None:
    """[K], sum 1, in the order of the labels; None where the config names none.

    Errors: UserError for a CSV that is not there, lacks columns or classes, has a class twice or
    one that classes.csv does not have, or whose numbers are negative or do not sum to one.
    """
    counts = dataset.counts(dataset.images).astype(float)  # [K]
    if config.target_prior is None:
        return None
    if path := csv_of(config):
        return _read(path, dataset.classes["class_id"])
    if config.target_prior == BALANCED:
        return np.full(len(counts), 1 / len(counts))
    if config.target_prior == TRAIN:
        return counts / counts.sum()
    return (counts > 0) / np.count_nonzero(counts)


def _read(path: Path, classes: pd.Series) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path}: no such file; target_prior names a CSV under data.root")
    table = read_table(path)
    if lacking := [name for name in COLUMNS if name not in table]:
        raise UserError(
            f"{path}: columns {some(lacking)} are missing, it has {some(list(table))}; "
            "target_prior needs a row `class_id,prior` for each class"
        )
    if twice := sorted(set(table["class_id"][table["class_id"].duplicated()])):
        raise UserError(f"{path}: the classes {some(twice)} have more than one row; keep one")
    known = set(classes)
    if unknown := sorted(set(table["class_id"]) - known):
        raise UserError(
            f"{path}: {len(unknown)} class ids are not in classes.csv: {some(unknown)}; write them "
            "as the competition does"
        )
    if lacking := sorted(known - set(table["class_id"])):
        raise UserError(
            f"{path}: lacks {len(lacking)} of {len(known)} classes: {some(lacking)}; give every "
            "class a row, with 0 where the leaderboard has none of it"
        )
    numbers = pd.to_numeric(table["prior"], errors="coerce")
    wrong = table["class_id"][~(np.isfinite(numbers) & (numbers >= 0))].tolist()
    if wrong:
        raise UserError(
            f"{path}: prior of the classes {some(wrong)} is negative or no number; expected shares "
            "from 0 to 1"
        )
    if abs(numbers.sum() - 1) > ROUNDING:
        raise UserError(
            f"{path}: the priors sum to {numbers.sum():.6g}, expected 1; divide them by their sum"
        )
    prior = dict(zip(table["class_id"], numbers / numbers.sum(), strict=True))
    return classes.map(prior).to_numpy(float)
