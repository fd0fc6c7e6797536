"""Format `topk`: the k likeliest class ids in one cell, separated by spaces, likeliest first.

Image,Id
00012.jpg,w_1287fbc w_98baff9 new_whale w_7554f44 w_1eafe46
"""

import pandas as pd

from src.config.submission import Submission
from src.errors import some
from src.submission.answer import Answer
from src.submission.format import Format, Sample, Sheet, label_column, words_of


class TopK(Format):
    keys = ("k", "unknown.place")

    def recognise(self, sample: Sample, known: list[str], keys: Submission) -> Sheet | str:
        if sample.repeats:
            return "images have several rows"
        column = label_column(sample, known, keys)
        if column is None:
            return "no column can be told to be that of class ids (submission.label_column)"
        asked, cells = keys.format == "topk", sample.table[column]
        counts = sorted({len(cell.split()) for cell in set(cells)})
        strange = sorted(words_of(cells) - set(known))
        if counts[-1] < 2 and not (asked and keys.k):
            return f"cells of {column!r} hold one word (submission.k)" if asked else "one id a cell"
        if strange and not asked:
            return f"words in {column!r} such as {some(strange)} are no class ids"
        if len(counts) > 1 and not keys.k:
            return f"cells of {column!r} hold {counts[0]} to {counts[-1]} words (submission.k)"
        k = keys.k or counts[-1]
        if k > len(known):
            return f"{k} ids a cell, and there are {len(known)} classes"
        said = "asked for" if asked else f"cells of {column!r} hold {counts[-1]} class ids"
        return Sheet("topk", sample.id_column, column, f"{said}; {k} are written", k=k)

    def fill(
        self, part: pd.DataFrame, rows, answer: Answer, sheet: Sheet, columns: list[str]
    ) -> pd.DataFrame:
        cells = [" ".join(ids) for ids in answer.best(rows, sheet.k)]
        return part.assign(**{sheet.label_column: cells})[columns]

    def problem(self, part: pd.DataFrame, sheet: Sheet, known: list[str]) -> str | None:
        words = part[sheet.label_column].str.split(" ")
        wrong = part.loc[words.map(lambda w: len(set(w))) != sheet.k, sheet.label_column]
        if len(wrong):
            return f"expected {sheet.k} different class ids a cell, found {some(wrong)}"
        unknown = sorted({word for cell in words for word in cell} - set(known))
        return f"class ids {some(unknown)} are not in classes.csv" if unknown else None
