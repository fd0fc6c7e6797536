"""`data.limit`: a dataset small enough to try everything on, with all that shapes it kept.

Every class stays, and so does the tail: a class keeps its share of the images, and two where there
is room for two of each, so that folds can hold one out. The sample submission and the solution
become those of the test images that stay, in files beside folds.csv.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from src.artifacts.files import read_table, write_table
from src.config.data import Data
from src.prepare.sources import Source

TEST_SHARE = 4  # one test image for so many training images


def few_images(train: pd.DataFrame, limit: int) -> pd.DataFrame:
    """The rows of `train` (image_id, class_id, …) that stay, at most `limit` or as many as there
    are classes. Of each class they are spread evenly over its sorted ids."""
    sizes = train["class_id"].value_counts()
    least = 2 if 2 * len(sizes) <= limit else 1
    left = max(0, limit - least * len(sizes)) / len(train)
    keep = (sizes.clip(upper=least) + (sizes * left).astype(int)).clip(upper=sizes)
    parts = [
        rows.sort_values("image_id").iloc[_spread(len(rows), keep[class_id])]
        for class_id, rows in train.groupby("class_id", sort=False)
    ]
    return pd.concat(parts).sort_values("image_id", kind="stable", ignore_index=True)


def few_test_images(source: Source, data: Data) -> Source:
    """The source with few of its test images."""
    test = source.test.iloc[_spread(len(source.test), max(1, data.limit // TEST_SHARE))]
    return replace(source, test=test.reset_index(drop=True))


def few_rows(source: Source, data: Data, directory: Path) -> Source:
    """The source with files in `directory` that ask for its test images alone."""
    asked = set(source.test["image_id"])
    if data.observation is not None and "test" in source.fields:  # rows may be of these
        asked |= set(source.fields["test"].loc[source.test["image_id"], data.observation])

    def cut(table: pd.DataFrame) -> pd.DataFrame:
        return table[table[source.columns[0]].isin(asked)].reset_index(drop=True)

    def written(path: Path | None, name: str) -> Path | None:
        return path and write_table(directory / name, cut(read_table(path)))

    return replace(
        source,
        sample_submission=written(source.sample_submission, "sample_submission.csv"),
        solution=written(source.solution, "limited_solution.csv"),
        truth=None if source.truth is None else cut(source.truth),
    )


def _spread(count: int, keep: int) -> np.ndarray:
    """`keep` of `count` places, at equal distances."""
    keep = min(count, keep)
    return np.arange(keep) * count // max(keep, 1)
