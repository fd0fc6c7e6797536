"""Single files: JSON, tables and arrays, read with care and written as a whole.

Every file is written to a temporary name, flushed to the disk and renamed, so a reader never sees
half of one.
"""

import errno
import glob
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from src.errors import UserError


def write_atomic(path: str | Path, write: Callable[[io.BufferedIOBase], None]) -> Path:
    """Call `write(file)` on a temporary file beside `path`, then rename it to `path`.

    Errors: UserError when the disk is full; the temporary file is removed and an older `path` is
    left as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(glob.escape(f".{path.name}.") + "*.tmp"):
            left.unlink(missing_ok=True)  # by a process that was killed
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):
            free = shutil.disk_usage(path.parent).free / 2**20
            raise UserError(
                f"{path}: the disk is full ({free:.0f} MiB free); nothing was half-written. "
                "Free some space and run the same command again, it continues where it stopped."
            ) from error
        raise
    return path


def write_bytes(path: str | Path, data: bytes) -> Path:
    return write_atomic(path, lambda file: file.write(data))


def write_text(path: str | Path, text: str) -> Path:
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, tree: dict) -> Path:
    return write_text(path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict:
    """Errors: UserError when the file is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run again") from error


def write_table(path: str | Path, table: pd.DataFrame) -> Path:
    return write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_table(path: str | Path, numbers: Iterable[str] = ()) -> pd.DataFrame:
    """Read a CSV with every column as text (`00123`, `1e5` and `NA` survive), except `numbers`.

    Errors: UserError for a missing or malformed file, a missing column, or a cell of a number
    column that is none.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable CSV table: {error}") from error
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
    return write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Errors: UserError when the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npz file ({error})") from error


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
