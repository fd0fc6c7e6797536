"""What a format is, and the sample that it is told from."""

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from src.config.submission import Submission
from src.submission.answer import Answer

TOLERANCE = 1e-6  # of the sum of an image's probabilities


@dataclass(frozen=True)
class Sample:
    """The sample submission as it lies there.

    path: None for one that is made up, where there is none · columns: all · id_column: of the
    images' ids · table: as text, without columns of single classes, which may be thousands · first:
    the first three rows with all columns · prefix: of the columns of classes, None where there are
    no such
    """

    path: Path | None
    columns: list[str]
    id_column: str
    table: pd.DataFrame
    first: pd.DataFrame
    prefix: str | None

    @property
    def others(self) -> list[str]:
        """Columns beside the images' ids, and beside those of single classes."""
        return [name for name in self.table if name != self.id_column]

    @property
    def repeats(self) -> bool:
        """Whether images have several rows."""
        return bool(self.table[self.id_column].duplicated().any())


@dataclass(frozen=True)
class Sheet:
    """How a competition's file is made up.

    format: a key of `FORMATS` · why: it is taken for that · label_column: of class ids; of
    `probabilities`, which has none, what a solution is expected to call it · value_column: of
    probabilities (long) · k: ids in a cell (topk) · prefix: of the columns of classes
    (probabilities)
    """

    format: str
    id_column: str
    label_column: str
    why: str
    value_column: str | None = None
    k: int | None = None
    prefix: str | None = None

    def facts(self) -> dict:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return f"{self.format}: {self.why}"


class Format:
    """One format. The keys of the section `submission` that it reads, beside those of all formats
    (label_column is one: `probabilities` calls a solution's column so), are in `keys`.

    classes: class ids in the order of labels, [K] · known: the same, and the unknown class
    """

    keys: tuple[str, ...] = ()

    def recognise(self, sample: Sample, known: list[str], keys: Submission) -> Sheet | str:
        """How the sample is made up, or why it is not of this format. With `keys.format` naming
        it, whatever the cells say."""
        raise NotImplementedError

    def blank(self, ids: list[str], sheet: Sheet, classes: list[str]) -> pd.DataFrame:
        """A sample for a competition that has none."""
        return pd.DataFrame({sheet.id_column: ids, sheet.label_column: classes[0]}, dtype=str)

    def step(self, sample: Sample) -> int:
        """How many rows of the sample are filled at once."""
        return max(1, 2**22 // len(sample.columns))

    def fill(self, part: pd.DataFrame, rows, answer: Answer, sheet: Sheet, columns: list[str]):
        """The rows `part` of the sample's table with the answer, and all `columns` in order.

        rows: of the answer, for each row of `part`, [n]
        """
        raise NotImplementedError

    def problem(self, part: pd.DataFrame, sheet: Sheet, known: list[str]) -> str | None:
        """What is wrong with the cells of some rows that were read back; None: nothing."""
        raise NotImplementedError


def label_column(sample: Sample, known: list[str], keys: Submission) -> str | None:
    """Of class ids: as asked for, the only one there is, or the only one whose words all are class
    ids; None: it cannot be told."""
    others = sample.others
    if keys.label_column:
        return keys.label_column if keys.label_column in others else None
    if len(others) == 1:
        return others[0]
    told = [name for name in others if set(sample.table[name]) <= set(known)]
    told = told or [name for name in others if words_of(sample.table[name]) <= set(known)]
    return told[0] if len(told) == 1 else None


def words_of(cells: pd.Series) -> set[str]:
    """Every word of the cells, and "" for one that has none."""
    return {word for cell in set(cells) for word in (cell.split() or [""])}
