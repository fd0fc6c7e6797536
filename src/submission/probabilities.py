"""Format `probabilities`: a column per class, in the sample's order, each row summing to 1.

id,class_17,class_4780,class_88
00012,0.2,0.7,0.1
"""

import numpy as np
import pandas as pd

from src.config.submission import Submission
from src.errors import some
from src.submission.answer import Answer
from src.submission.format import TOLERANCE, Format, Sample, Sheet


class Probabilities(Format):
    keys = ("prefix", "decimals", "clip", "unknown.probability")

    def recognise(self, sample: Sample, known: list[str], keys: Submission) -> Sheet | str:
        if sample.prefix is None:
            return (
                f"of {len(known)} classes, none or one has a column of its name (submission.prefix)"
            )
        if sample.repeats:
            return "images have several rows"
        asked = keys.format == "probabilities"
        there = set(class_columns(sample.columns, sample.prefix, known))
        lacking = [c for c in known if sample.prefix + c not in there]
        if lacking and not asked:
            return f"{len(lacking)} of {len(known)} classes have no column: {some(lacking)}"
        first = min(sample.columns.index(name) for name in there)
        after = [name for name in sample.columns[first:] if name in sample.others]
        odd = [name for name in after if fractions(sample.table[name])]
        if odd and not asked:
            return (
                f"columns {some(odd)} hold numbers and are of no class; a class without images is "
                "submission.unknown"
            )
        before = f", with {sample.prefix!r} before its id" if sample.prefix else ""
        why = f"a column for each of {len(there)} classes{before}"
        why += f"; {len(lacking)} classes have none and are left out" if lacking else ""
        title = keys.label_column or "class_id"
        return Sheet("probabilities", sample.id_column, title, why, prefix=sample.prefix)

    def blank(self, ids: list[str], sheet: Sheet, classes: list[str]) -> pd.DataFrame:
        return pd.DataFrame({sheet.id_column: ids}, dtype=str)

    def fill(
        self, part: pd.DataFrame, rows, answer: Answer, sheet: Sheet, columns: list[str]
    ) -> pd.DataFrame:
        names = class_columns(columns, sheet.prefix, answer.known)
        p = answer.probabilities(rows, [n.removeprefix(sheet.prefix) for n in names])
        values = pd.DataFrame(p, columns=names, index=part.index)
        return pd.concat([part, values], axis=1)[columns]

    def problem(self, part: pd.DataFrame, sheet: Sheet, known: list[str]) -> str | None:
        p = part[class_columns(list(part), sheet.prefix, known)].to_numpy(np.float64)
        return wrong_numbers(p) or wrong_sums(p.sum(1))


def class_columns(columns: list[str], prefix: str, known: list[str]) -> list[str]:
    names = {prefix + class_id for class_id in known}
    return [name for name in columns if name in names]


def find_prefix(columns: list[str], known: list[str]) -> str | None:
    """What stands before class ids in the names of columns: of all that stand before the first or
    the last, that with most classes, the shorter of equals. None where fewer than two classes have
    a column."""
    sure = set(columns)
    options = {name.removesuffix(c) for c in known[:1] + known[-1:] for name in columns
               if name.endswith(c)} | {""}  # fmt: skip
    count = {p: sum(p + c in sure for c in known) for p in options}
    best = min(options, key=lambda p: (-count[p], len(p), p))
    return best if count[best] > 1 else None


def fractions(cells: pd.Series) -> bool:
    """Whether all are numbers from 0 to 1."""
    found = pd.to_numeric(cells, errors="coerce")
    return bool(found.between(0, 1).all())


def wrong_numbers(p: np.ndarray) -> str | None:
    wrong = ~((p >= 0) & (p <= 1))  # NaN, too
    return f"probabilities such as {some(p[wrong])} are not in 0 … 1" if wrong.any() else None


def wrong_sums(sums: np.ndarray) -> str | None:
    wrong = np.abs(sums - 1) > TOLERANCE
    return f"sums of an image's probabilities such as {some(sums[wrong])}" if wrong.any() else None
