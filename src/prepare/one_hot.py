"""Tables with a column of 0 and 1 for each class: which columns these are, and what they say."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from src.errors import UserError, some

ONE = ("1", "1.0", "True", "true", "TRUE")
ZERO = ("0", "0.0", "False", "false", "FALSE")


def flags(table: pd.DataFrame, but: Collection[str] = ()) -> list[str]:
    """Columns that hold 0 and 1, both of them, and nothing else."""
    found = [name for name in table if name not in but]
    values = {name: set(table[name]) for name in found}
    return [
        n
        for n in found
        if values[n] <= {*ONE, *ZERO} and values[n] & {*ONE} and values[n] & {*ZERO}
    ]


def chosen(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """[N, K] of bool: where they hold 1."""
    return table[columns].isin(ONE)


def classes_of(table: pd.DataFrame, but: Collection[str], path: Path) -> pd.Series:
    """Of each row [N] the column that holds 1: its class id.

    but: columns that are no class whatever they hold. Errors: UserError where fewer than two hold 0
    and 1, and for rows with another number of ones than one.
    """
    columns = flags(table, but)
    if len(columns) < 2:
        raise UserError(
            f"{path}: data.one_hot: {len(columns)} columns hold 0 and 1 and nothing else; expected "
            f"one for each class. It has {some(list(table))}. Set data.one_hot=false and name the "
            "column of class ids in data.label_column."
        )
    ones = chosen(table, columns)
    if len(odd := np.flatnonzero(ones.sum(axis=1) != 1)):
        raise UserError(
            f"{path}: data.one_hot: {len(odd)} of {len(table)} rows have no 1, or several, in the "
            f"columns {some(columns)}: lines {some((odd + 2).tolist())}; expected one class per "
            "image. Correct or remove these rows. A column of 0 and 1 that is no class: name it in "
            "data.columns, or remove it."
        )
    return ones.idxmax(axis=1)
