"""Columns of the user's own (country, month, observation): data.columns, as text, of every image.

A column comes from the table that lists the images, and else from data.metadata, joined by id.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from src.artifacts.files import read_table
from src.artifacts.ids import check_unique
from src.config.data import Data
from src.errors import UserError, some
from src.prepare.sources import Source, columns_there, require_columns, source_file

NOTHING = pd.DataFrame()


def with_columns(data: Data, source: Source) -> Source:
    """The source with data.columns of the images of `train` and `test` as its `fields`.

    Errors: UserError for a column that neither the table of train or test nor data.metadata has,
    for images that data.metadata lacks or has twice, and for values that no table can hold.
    """
    if not data.columns:
        return replace(source, fields={})
    path, listed = None, NOTHING
    if data.metadata is not None:
        path = source_file(data, "metadata", "table")
        listed = read_table(path)
        require_columns(listed, {"image_column": data.image_column}, path)
        listed = listed.set_index(data.image_column, drop=False)
    ids = {"train": source.train["image_id"], "test": source.test["image_id"]}
    lists = []  # of ids that are looked up in data.metadata
    for split in ids:
        own = source.fields.get(split, NOTHING)
        lacking = [name for name in data.columns if len(ids[split]) and name not in own]
        for name in lacking:
            if name not in listed:
                raise UserError(_says_what_is_missing(name, split, data, source, path, listed))
        lists += [ids[split]] if lacking else []
    if lists:
        _check_ids(pd.concat(lists), path, listed)
    fields = {s: _columns(data, ids[s], source.fields.get(s, NOTHING), listed) for s in ids}
    tables = source.tables | ({"metadata": path} if path else {})
    return replace(source, fields=fields, tables=tables)


def beside(table: pd.DataFrame, fields: pd.DataFrame | None) -> pd.DataFrame:
    """`table` with its images' columns of `Source.fields` after its own, joined by image_id."""
    return table if fields is None else table.join(fields, on="image_id")


def _columns(data: Data, ids: pd.Series, own: pd.DataFrame, listed: pd.DataFrame) -> pd.DataFrame:
    """data.columns by image id, in the order of `ids`."""
    names = list(data.columns)
    if not len(ids):
        return pd.DataFrame(columns=names, dtype=str)
    found = {n: (own if n in own else listed).loc[ids, n].to_numpy() for n in names}
    for name, values in found.items():
        odd = ids[["\0" in v or ("\r" in v and "\n" not in v) for v in values]]
        if len(odd):
            raise UserError(
                f"data.columns: {name!r} of {len(odd)} images holds a lone carriage return or a "
                f"zero byte, which a CSV table loses: {some(odd)}. Take it out of the values."
            )
    return pd.DataFrame(found, index=ids, dtype=str)


def _check_ids(ids: pd.Series, path: Path, listed: pd.DataFrame) -> None:
    """Errors: UserError unless `listed` has every image exactly once; others do not matter."""
    both = ids[ids.duplicated()]
    if len(both):
        raise UserError(
            f"{path}: {len(both)} ids are those of a train and of a test image, which it cannot "
            f"tell apart: {some(both)}. Put data.columns into the train and test tables instead."
        )
    check_unique(listed.index[listed.index.isin(ids)], path)
    missing = ids[~ids.isin(listed.index)]
    if len(missing):
        raise UserError(
            f"{path}: {len(missing)} of {len(ids)} images have no row: {some(missing)}. It has "
            f"ids such as {some(listed.index)}; add the rows, or correct data.image_column."
        )


def _says_what_is_missing(
    name: str, split: str, data: Data, source: Source, path: Path | None, listed: pd.DataFrame
) -> str:
    """The error of a column that can be found nowhere for the images of `split`."""
    if split not in source.fields and path is None:
        return (
            f"data.columns: source {data.source} has no table with columns; set data.metadata to a "
            f"CSV under {data.root} with image ids in the column {data.image_column!r} and with "
            f"{some(data.columns)}."
        )
    file, table, notes = path, listed, ""
    if split in source.fields:
        file, table = source.tables[split], source.fields[split]
        other = "test" if split == "train" else "train"
        notes += f", {source.tables[other]} has it" if name in source.fields.get(other, ()) else ""
        notes += f", {path} lacks it, too" if path else ""
    return (
        f"{file}: column {name!r} (data.columns) is missing{notes}; {columns_there(table, name)} "
        f"Correct data.columns, or add it, for all {split} images, to the table of data.metadata."
    )
