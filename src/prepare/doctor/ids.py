"""Which column of a table names images, in which directory, and with which ending."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from src.prepare.doctor.survey import Survey, Table, is_test, is_train

SAMPLE = 200  # cells of a column that are looked up
ENOUGH = 0.5  # share of them that must be images, for a column of ids
ANY = "*"  # data.suffix: whatever ending, in whatever directory below


@dataclass(frozen=True)
class Ids:
    """column: names the images `<directory>/<cell><suffix>`, for this share of its cells"""

    column: str
    directory: str
    suffix: str
    share: float


def ids_of(table: Table, survey: Survey, *, train: bool) -> Ids | None:
    """The best column, the first of equals; None where no column names images.

    train: whether training images are meant, where one name is in several directories
    """
    found = [_look_up(table, name, survey, train) for name in table.first]
    found = [ids for ids in found if ids is not None and ids.share >= ENOUGH]
    return max(found, key=lambda ids: ids.share) if found else None


def _look_up(table: Table, column: str, survey: Survey, train: bool) -> Ids | None:
    cells = [cell for cell in table.first[column].unique() if cell.strip()]
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
        return None
    best = max(places.values())
    equal = sorted((place for place, n in places.items() if n == best), key=lambda p: (p[0], p[1]))
    directory, suffix = max(equal, key=lambda place: _fits(place[0], train))
    if best < there:  # several endings, or directories that the ids do not name
        directory, suffix = _above([place for place, _ in places], train), ANY
        best = there
    return Ids(column, directory, suffix, best / len(cells))


def _way(path: str, cell: str) -> tuple[str, str] | None:
    """Directory and suffix that lead from a cell to an image."""
    for suffix in ("", f".{path.rpartition('.')[2]}"):
        whole = cell + suffix
        if path == whole:
            return "", suffix
        if path.endswith(f"/{whole}"):
            return path.removesuffix(f"/{whole}"), suffix
    return None


def _fits(directory: str, train: bool) -> int:
    """Whether a directory is called so: 1, 0, or -1 for the contrary."""
    return (is_train(directory) - is_test(directory)) * (1 if train else -1)


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
