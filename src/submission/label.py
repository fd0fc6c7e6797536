"""Format `label`: one class id per image.

image_id,class_id
00012,4780
"""

import re

import pandas as pd

from src.config.submission import Submission
from src.errors import some
from src.submission.answer import Answer
from src.submission.format import Format, Sample, Sheet, label_column

FRACTION = re.compile(r"[-+]?\d*\.\d*(e[-+]?\d+)?", re.IGNORECASE)


class Label(Format):
    def recognise(self, sample: Sample, known: list[str], keys: Submission) -> Sheet | str:
        if sample.repeats:
            return "images have several rows"
        column = label_column(sample, known, keys)
        if column is None:
            return "no column can be told to be that of class ids (submission.label_column)"
        strange = sorted(set(sample.table[column]) - set(known))
        why = f"every cell of {column!r} is one class id"
        if keys.format == "label":
            why = "asked for"
        elif strange:
            odd = [cell for cell in strange if len(cell.split()) > 1 or FRACTION.fullmatch(cell)]
            if odd or sample.prefix is not None:
                return f"cells of {column!r} such as {some(odd or strange)} are no class ids"
            why = f"one word per cell of {column!r}, such as {some(strange)}, though no class id"
        return Sheet("label", sample.id_column, column, why)

    def fill(
        self, part: pd.DataFrame, rows, answer: Answer, sheet: Sheet, columns: list[str]
    ) -> pd.DataFrame:
        return part.assign(**{sheet.label_column: answer.best(rows, 1)[:, 0]})[columns]

    def problem(self, part: pd.DataFrame, sheet: Sheet, known: list[str]) -> str | None:
        unknown = sorted(set(part[sheet.label_column]) - set(known))
        return f"class ids {some(unknown)} are not in classes.csv" if unknown else None
