"""Format `long`: a row per image and class, with its probability, in the sample's order.

image_id,class_id,probability
00012,17,0.2
00012,4780,0.8
"""

import numpy as np
import pandas as pd

from src.config.submission import Submission
from src.errors import some
from src.submission.answer import Answer
from src.submission.format import Format, Sample, Sheet
from src.submission.probabilities import fractions, wrong_numbers, wrong_sums


class Long(Format):
    keys = ("value_column", "decimals", "clip", "unknown.probability")

    def recognise(self, sample: Sample, known: list[str], keys: Submission) -> Sheet | str:
        asked = keys.format == "long"
        if not sample.repeats and not asked:
            return "no image has several rows"
        named = [keys.label_column] if keys.label_column else sample.others
        labels = [c for c in named if c in sample.others and self._are_classes(sample, c, known)]
        if len(labels) != 1:
            found = f"found {some(labels)}" if labels else "found none"
            return (
                f"{found}; expected one column of class ids, different in each of an image's rows "
                "(submission.label_column)"
            )
        named = [keys.value_column] if keys.value_column else sample.others
        values = [c for c in named if c in sample.others and c not in labels]
        values = values if keys.value_column else [c for c in values if fractions(sample.table[c])]
        if len(values) != 1:
            found = f"found {some(values)}" if values else "found none"
            return f"{found}; expected one column of numbers 0 … 1 (submission.value_column)"
        why = "asked for" if asked else f"a row per image and class of {labels[0]!r}"
        why += f", probabilities in {values[0]!r}"
        return Sheet("long", sample.id_column, labels[0], why, value_column=values[0])

    def _are_classes(self, sample: Sample, column: str, known: list[str]) -> bool:
        pairs = sample.table[[sample.id_column, column]]
        return set(sample.table[column]) <= set(known) and not pairs.duplicated().any()

    def blank(self, ids: list[str], sheet: Sheet, classes: list[str]) -> pd.DataFrame:
        pairs = {sheet.id_column: np.repeat(ids, len(classes))}
        pairs |= {sheet.label_column: np.tile(classes, len(ids)), sheet.value_column: "0"}
        return pd.DataFrame(pairs, dtype=str)

    def step(self, sample: Sample) -> int:
        return len(sample.table)  # an image's rows may lie anywhere

    def fill(
        self, part: pd.DataFrame, rows, answer: Answer, sheet: Sheet, columns: list[str]
    ) -> pd.DataFrame:
        """An image's rows sum to 1 where all images are asked for the same classes; else they have
        the share of all classes that is theirs."""
        asked = sorted(set(part[sheet.label_column]))
        chosen = asked if _whole(part, sheet) else answer.known
        images, row = np.unique(rows, return_inverse=True)
        column = pd.Index(chosen).get_indexer(part[sheet.label_column])
        p = answer.probabilities(images, chosen)[row, column]
        return part.assign(**{sheet.value_column: p})[columns]

    def problem(self, part: pd.DataFrame, sheet: Sheet, known: list[str]) -> str | None:
        p = part[sheet.value_column].to_numpy(np.float64)
        sums = pd.Series(p).groupby(part[sheet.id_column].to_numpy()).sum().to_numpy()
        return wrong_numbers(p) or (wrong_sums(sums) if _whole(part, sheet) else None)


def _whole(part: pd.DataFrame, sheet: Sheet) -> bool:
    """Whether each image has a row for each class that any has one for."""
    images, classes = part[sheet.id_column].nunique(), part[sheet.label_column].nunique()
    return len(part) == images * classes
