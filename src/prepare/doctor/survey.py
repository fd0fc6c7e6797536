"""What lies in a directory: images by directory, tables with their first rows. Reads no image."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import pandas as pd

from src.artifacts.files import BINARY, read_table
from src.errors import UserError, shortened, some
from src.prepare.folder import image_files, visible

ROWS = 2000  # of a table, to tell what it is
TABLES = 40  # that are looked into, the least deep first
TRAIN = re.compile(r"(^|[^a-z])train(ing|set|s)?([^a-z]|$)")  # as a word of its own: not constrain
TEST = re.compile(r"(^|[^a-z])test(ing|set|s)?([^a-z]|$)")  # not testudo
HELD_OUT = re.compile(r"(val(id(ation)?)?s?|dev)([\d_-].*)?")
READ = (".csv", ".csv.gz", ".tsv", ".tsv.gz", *BINARY)  # of BINARY, why not
OTHER_TABLES = (".json", ".jsonl", ".pkl", ".xlsx", ".txt")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".xz", ".bz2")


@dataclass(frozen=True)
class Table:
    """A CSV or TSV. path: below the root · first: up to ROWS of its rows, as text"""

    path: str
    first: pd.DataFrame

    @property
    def name(self) -> str:
        """Without directory and ending, in small letters: what it is called hints at what it is."""
        return PurePosixPath(self.path).stem.lower()


@dataclass(frozen=True)
class Survey:
    """images: of all files that are images by their ending, the path below root, sorted · tables:
    CSVs and TSVs that can be read · unread: why others cannot · others: files that are neither"""

    root: Path
    images: list[str]
    tables: list[Table]
    unread: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """Images by file name and by file name without ending."""
        found: dict[str, list[str]] = {}
        for path in self.images:
            name = path.rpartition("/")[2]
            for key in {name, os.path.splitext(name)[0]}:
                found.setdefault(key, []).append(path)
        return found

    @cached_property
    def folders(self) -> Counter:
        """Images directly in each directory; "" is the root."""
        return Counter(path.rpartition("/")[0] for path in self.images)

    def directories(self) -> list[str]:
        """All with images in them or below, the root's name being ""."""
        found = {""}
        for folder in self.folders:
            found |= {folder, *(str(p) for p in PurePosixPath(folder).parents if str(p) != ".")}
        return sorted(found)

    def below(self, directory: str) -> list[str]:
        """Images in a directory, however deep, as paths below it."""
        if not directory:
            return self.images
        prefix = f"{directory}/"
        return [path.removeprefix(prefix) for path in self.images if path.startswith(prefix)]

    def to_extract(self) -> str:
        """What to do about archives, "" where there are none."""
        packed = [path for path in self.others if path.lower().endswith(ARCHIVES)]
        if not packed:
            return ""
        return f"Extract {some(packed)} there, or inspect the competition's zip itself"

    def __str__(self) -> str:
        """What was found, for errors."""
        folders = [f"{name or '.'} ({n})" for name, n in self.folders.most_common(6)]
        more = f" and {len(self.folders) - 6} more" if len(self.folders) > 6 else ""
        lines = [f"{len(self.images)} images in {len(self.folders)} directories"]
        lines[0] += f": {', '.join(folders)}{more}" if folders else ""
        lines[0] += f"; such as {some(self.images[:1])}" if self.images else ""
        for table in self.tables[:8]:
            columns = list(table.first)
            more = f" … {len(columns)} in all" if len(columns) > 8 else ""
            row = ", ".join(map(shortened, table.first.iloc[0, :8])) if len(table.first) else "none"
            lines.append(
                f"{table.path} with the columns {', '.join(columns[:8])}{more}, and in its first "
                f"row {row}"
            )
        lines += [f"{path}, not read: {why}" for path, why in list(self.unread.items())[:4]]
        if self.others:
            lines.append(f"{len(self.others)} other files: {some(self.others)}")
        return "\n".join(f"  {line}" for line in lines)


def survey(directory: Path) -> Survey:
    """Descends first where there is nothing but one directory. Errors: UserError for a directory
    with nothing in it."""
    root = _inner(directory)
    images, others = image_files(root)
    others = [path for path in others if not path.endswith("/")]
    named = sorted(others, key=lambda path: (path.count("/"), path))
    sheets = [path for path in named if path.lower().endswith(READ)][:TABLES]
    tables, unread = [], {}
    for path in sheets:
        try:
            tables.append(Table(path, read_table(root / path, rows=ROWS)))
        except UserError as error:
            unread[path] = str(error).removeprefix(f"{root / path}: ")
    unread |= {path: "not a CSV or TSV" for path in named if path.lower().endswith(OTHER_TABLES)}
    rest = [path for path in named if path not in unread and path not in sheets]
    found = Survey(root, images, tables, unread, rest)
    if not images:
        todo = found.to_extract() or (
            "Is that the right directory? Inspect one that has the images and their tables in it "
            "or below it"
        )
        raise UserError(
            f"{root}: no images. Looked for files that end in .jpg, .png and the like, at any "
            f"depth; found\n{found}\n{todo}."
        )
    return found


def _inner(directory: Path) -> Path:
    """Zips often hold one directory that holds everything."""
    while True:
        names = sorted(filter(visible, os.listdir(directory)))
        places = [name for name in names if (directory / name).is_dir()]
        if len(names) != 1 or not places or is_train(places[0]):
            return directory
        inside = [n for n in os.listdir(directory / places[0]) if visible(n)]
        if not any((directory / places[0] / name).is_dir() for name in inside):
            return directory  # one class
        directory = directory / places[0]


def is_train(name: str) -> bool:
    return TRAIN.search(name.lower()) is not None


def is_test(name: str) -> bool:
    return TEST.search(name.lower()) is not None


def is_held_out(name: str) -> bool:
    """For validation: folds take its place here."""
    return HELD_OUT.fullmatch(name.lower()) is not None
