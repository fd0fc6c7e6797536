"""Single files: JSON, tables and arrays, read with care and written as a whole.

Every file is written to a temporary name, flushed to the disk and renamed, so a reader never sees
half of one.
"""

import glob
import hashlib
import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import UnionType

import numpy as np
import pandas as pd

from src.artifacts.mapped import read_npz, write_npz
from src.errors import MORE_ROOM, UserError, no_room, read_text, shortened

BINARY = (".parquet", ".feather")  # tables that pandas reads with pyarrow alone, which is not here


def write_atomic(
    path: str | Path, write: Callable[[io.BufferedIOBase], None], *, among_many: bool = False
) -> Path:
    """Call `write(file)` on a temporary file beside `path`, then rename it to `path`.

    among_many: do not look for what killed processes left of it, which takes as long as there are
    files beside it; the caller clears that away once.
    Errors: UserError when the disk is full; the temporary file is removed and an older `path` is
    left as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = glob.escape(f".{path.name}.") + "*.tmp"
        for left in () if among_many else path.parent.glob(mine):
            left.unlink(missing_ok=True)  # by a process that was killed
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, Exception) and (why := no_room(error)):
            free = shutil.disk_usage(path.parent).free / 2**20
            raise UserError(
                f"{path}: {why} ({free:.0f} MiB free); nothing was half-written. {MORE_ROOM}"
            ) from error
        raise
    return path


def write_bytes(path: str | Path, data: bytes) -> Path:
    return write_atomic(path, lambda file: file.write(data))


def write_text(path: str | Path, text: str) -> Path:
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, tree: dict) -> Path:
    return write_text(path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, needs: dict[str, type | UnionType] | None = None) -> dict:
    """One of our JSON files.

    needs: what the caller will look up, and its type: {"inputs": dict, "steps/*/params": dict},
    where `*` is each item of a list. Errors: UserError when the file is missing, is not JSON, or
    lacks what is needed.
    """
    again = "Delete it and run the script that writes it again"
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    text = read_text(path, "JSON")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:  # too many digits, too deep
        raise UserError(f"{path}: not valid JSON ({error}). {again}.") from error
    for place, kind in {"": dict, **(needs or {})}.items():
        wrong = _lacking(tree, place.split("/") if place else [], kind)
        if wrong is not None:
            where = f"{place!r} to be" if place else "it to hold"
            raise UserError(
                f"{path}: expected {where} {_kind(kind)}, found {wrong}; it was damaged or edited, "
                f"or written by another version. {again}."
            )
    return tree


def _lacking(tree, place: list[str], kind: type | UnionType) -> str | None:
    """What is at a place instead of a value of `kind`; None: it is as it should be."""
    if not place:
        right = isinstance(tree, kind) and not (isinstance(tree, bool) and kind is not bool)
        return None if right else shortened(repr(tree))
    first, *rest = place
    if first == "*" and isinstance(tree, list):
        found = (_lacking(item, rest, kind) for item in tree)
        return next((wrong for wrong in found if wrong is not None), None)
    if not isinstance(tree, dict):
        return shortened(repr(tree))
    return _lacking(tree[first], rest, kind) if first in tree else "nothing"


def _kind(kind: type | UnionType) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", int: "a whole number"}
    return names.get(kind, "a number" if kind == int | float else str(kind))


def write_table(path: str | Path, table: pd.DataFrame, *, among_many: bool = False) -> Path:
    text = table.to_csv(index=False, lineterminator="\n").encode("utf-8")
    return write_atomic(path, lambda file: file.write(text), among_many=among_many)


SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}


def separator(path: str | Path) -> str:
    """What is between the cells of a table: by its name, or by a first line without commas, a tab
    or a semicolon; else a comma. Errors: ValueError and OSError, as `pandas.read_csv`."""
    if ".tsv" in Path(str(path).lower()).suffixes[-2:]:  # .tsv.gz, too
        return "\t"
    names = list(pd.read_csv(path, nrows=0, dtype=str, encoding="utf-8-sig"))
    alone = names[0] if len(names) == 1 else ""
    return next((mark for mark in SEPARATORS if mark in alone), ",")


def read_table(
    path: str | Path,
    numbers: Iterable[str] = (),
    *,
    only: list[str] | None = None,
    rows: int | None = None,
) -> pd.DataFrame:
    """Read a table, its cells separated as `separator` tells, every column as text (`00123`, `1e5`
    and `NA` survive) but `numbers`.

    only: these columns · rows: so many from the top
    Errors: UserError for a missing or malformed file, a missing column, or a cell of a number
    column that is none.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix.lower() in BINARY:
        kind = path.suffix.lower()[1:]
        raise UserError(
            f"{path}: tables are read as CSV or TSV, and this is {kind}. Make a CSV of it, with "
            f'`pip install pyarrow` and `python -c "import pandas as pd; pd.read_{kind}('
            f'{str(path)!r}).to_csv({str(path.with_suffix(".csv"))!r}, index=False)"`.'
        )
    try:
        how = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
        how["sep"] = separator(path)
        table = pd.read_csv(path, usecols=only, nrows=rows, **how)
    except (ValueError, OSError, OverflowError) as error:  # parser, encoding, permission
        kind = "TSV" if ".tsv" in path.name.lower() else "CSV"
        todo = ". Save it as UTF-8." if isinstance(error, UnicodeDecodeError) else ""
        raise UserError(f"{path}: not a readable {kind} table in UTF-8: {error}{todo}") from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what is too many for row names
        raise UserError(
            f"{path}: the lines have more cells than the header, which names "
            f"{list(table.columns)}. Correct the header, or the {SEPARATORS[how['sep']]} at the "
            "ends of the lines."
        )
    for column in numbers:
        if column not in table:
            raise UserError(f"{path}: column {column!r} is missing; it has {list(table.columns)}")
        try:
            table[column] = pd.to_numeric(table[column])
        except ValueError as error:
            raise UserError(f"{path}: column {column!r} should hold numbers: {error}") from error
    return table


def write_arrays(path: str | Path, **arrays: np.ndarray) -> Path:
    """An `.npz` of plain arrays, the same bytes for the same arrays; text is stored as unicode."""
    return write_atomic(path, lambda file: write_npz(file, arrays))


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Large ones are mapped (src/artifacts/mapped.py). Errors: UserError when the file is missing,
    damaged, or holds other than plain arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            return read_npz(archive)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types for damaged files
        reason = shortened(str(error)) or type(error).__name__
        raise UserError(
            f"{path}: not a readable .npz file of plain arrays ({reason}); it is damaged or not "
            "one of ours. Delete it and run the script that writes it again."
        ) from error


_digests: dict[tuple[int, ...], str] = {}  # of this process
TICK = 10**8  # nanoseconds; a file system's clock may stand still for as long


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes, which are read once per process unless the file changes."""
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        key = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        if key not in _digests:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if time.time_ns() - about.st_ctime_ns < TICK:  # the next change may not show
                return digest
            _digests[key] = digest
        return _digests[key]
