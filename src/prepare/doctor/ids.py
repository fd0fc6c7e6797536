"""Which column of a table names images, in which directory, and with which ending."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from src.errors import UserError
from src.prepare.doctor.survey import Survey, Table, is_test, is_train
from src.prepare.folder import ENDINGS, without_ending

SAMPLE = 200  # cells of a column that are looked up
ENOUGH = 0.5  # share of them that must be images, for a column of ids
ANY = "*"  # data.suffix: whatever ending, in whatever directory below
BESIDE = re.compile(r"mask|annotation|trimap|segment")  # what is no photograph, of the same name


@dataclass(frozen=True)
class Ids:
    """column: names the images `<directory>/<cell><suffix>`, for this share of its cells · as_is:
    cells name files as they lie there, and not in another directory or with another ending"""

    column: str
    directory: str
    suffix: str
    share: float
    as_is: bool = True


def ids_of(table: Table, survey: Survey, *, train: bool) -> Ids | None:
    """The best column, the first of equals; None where no column names images.

    train: whether training images are meant: one name may be in several directories, and those of
    a directory that is called for the others are none
    Errors: UserError for a table of images without a line of columns.
    """
    best = nearest_ids(table, survey, train=train)
    if best is None or best.share < ENOUGH or _fits(best.directory, train)[1] < 0:
        return None
    if (
        best.column.lower().endswith(tuple(ENDINGS))
        and best.column.rpartition("/")[2] in survey.by_name
    ):
        raise UserError(
            f"{survey.root / table.path}: the first line names an image, {best.column!r}, where "
            "the columns' names are expected. Put them above it, such as image_id,class_id, and "
            "inspect again."
        )
    return best


def nearest_ids(table: Table, survey: Survey, *, train: bool) -> Ids | None:
    """Like `ids_of`, however few of its cells are images. Of several columns, numbers of classes
    may be names of images, too, but not another one in most rows."""

    def rank(ids: Ids) -> tuple[bool, bool, bool, float]:
        cells = table.first[ids.column]
        return ids.share >= ENOUGH, 2 * cells.nunique() > len(cells), ids.as_is, ids.share

    found = [ids for name in table.first if (ids := _look_up(table, name, survey, train))]
    return max(found, key=rank, default=None)


def _look_up(table: Table, column: str, survey: Survey, train: bool) -> Ids | None:
    cells = [c.replace("\\", "/") for c in table.first[column].unique() if c.strip()]
    if not cells:
        return None
    cells = [cells[i] for i in np.unique(np.linspace(0, len(cells) - 1, SAMPLE).astype(int))]
    places, there = Counter(), 0
    for cell in cells:
        ways = {way for path in survey.by_name.get(cell.rpartition("/")[2], ())
                if (way := _way(path, cell))}  # fmt: skip
        places.update(ways)
        there += bool(ways)
    if not places:
        return _by_name(cells, column, survey, train)
    best = max(places.values())
    equal = sorted((place for place, n in places.items() if n == best), key=lambda p: (p[0], p[1]))
    directory, suffix = max(equal, key=lambda place: _fits(place[0], train))
    if best < there:  # several endings, or directories that the ids do not name
        directory, suffix = _above([place for place, _ in places], train), ANY
        best = there
    return Ids(column, directory, suffix, best / len(cells))


def _by_name(cells: list[str], column: str, survey: Survey, train: bool) -> Ids | None:
    """Where no cell leads to an image: by the name alone, then by the name without its ending."""
    names = [cell.rpartition("/")[2] for cell in cells]
    for ending in (str, without_ending):
        found = [paths for name in names if (paths := survey.by_name.get(ending(name)))]
        if found:
            above = _above([p.rpartition("/")[0] for paths in found for p in paths], train)
            return Ids(column, above, ANY, len(found) / len(cells), as_is=False)
    return None


def _way(path: str, cell: str) -> tuple[str, str] | None:
    """Directory and suffix that lead from a cell to an image."""
    for suffix in ("", f".{path.rpartition('.')[2]}"):
        whole = cell + suffix
        if path == whole:
            return "", suffix
        if path.endswith(f"/{whole}"):
            return path.removesuffix(f"/{whole}"), suffix
    return None


def _fits(directory: str, train: bool) -> tuple[bool, int]:
    """Whether it can be of photographs; and whether it is called so: 1, 0, or -1 for the
    contrary."""
    named = (is_train(directory) - is_test(directory)) * (1 if train else -1)
    return BESIDE.search(directory.lower()) is None, named


def _above(directories: list[str], train: bool) -> str:
    """The deepest directory above those that are called for it."""
    best = max(_fits(d, train) for d in directories)
    parts = [d.split("/") if d else [] for d in directories if _fits(d, train) == best]
    same = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        same.append(level[0])
    return "/".join(same)
