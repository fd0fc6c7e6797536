"""Images of one observation are never split over folds, and are of one class."""

import pandas as pd

from src.artifacts.files import read_table
from src.artifacts.ids import check_same_ids
from src.config.data import Data
from src.errors import UserError, some
from src.fusion.observations import names_of
from src.prepare.sources import Source


def observed(data: Data, fields: pd.DataFrame | None, ids: pd.Series) -> pd.Series:
    """The observation of each image, "" for none. fields: of `Source`, of these images"""
    if data.observation is None or fields is None or not len(ids):
        return pd.Series("", index=ids.index, dtype=str)
    return ids.map(fields[data.observation].str.strip())


def check_observations(data: Data, source: Source) -> None:
    """Errors: UserError for observations whose train images are of several classes."""
    values = observed(data, source.fields.get("train"), source.train["image_id"])
    named = source.train[values != ""].assign(observation=values)
    classes = named.groupby("observation")["class_id"].unique()
    mixed = classes[classes.map(len) > 1]
    if len(mixed):
        told = [f"{name} ({', '.join(sorted(ids))})" for name, ids in mixed.items()]
        raise UserError(
            f"{source.tables.get('train', data.root)}: {len(mixed)} observations "
            f"({data.observation!r}) have train images of several classes: {some(told)}. One "
            "specimen has one class: correct the labels, or leave the value of wrong images empty."
        )


def asked_ids(data: Data, source: Source) -> pd.Series:
    """What the submission calls each test image, by image id: as we do, or by its observation where
    the sample's ids are in a column of the name data.observation.

    Errors: UserError unless such a sample has the observations of the test images.
    """
    images, path, column = source.test["image_id"], source.sample_submission, data.observation
    own = pd.Series(images.to_numpy(), index=images)
    if path is None or source.columns[0] != column:
        return own
    origin = source.tables.get("test", data.root)
    names = names_of(source.test.join(source.fields["test"], on="image_id"), column, origin)
    asked = read_table(path, only=[column])[column].drop_duplicates()
    check_same_ids(pd.unique(names), asked, f"{origin}, column {column!r}", str(path))
    return pd.Series(names, index=images)
