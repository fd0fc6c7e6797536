"""Directories of many files, made beside their place and moved there when they are whole."""

import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def half_made(target: Path) -> Iterator[Path]:
    """A new directory beside `target`, for the caller to fill and to rename; gone on the way out.

    It is locked as long as its process lives, so that those which killed processes have left are
    known, and removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(glob.escape(f".{target.name}.") + "*.half"):
        if (handle := _locked(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)
    handle = None
    while handle is None:  # another process may take it for left in the moment before it is locked
        new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".half", dir=target.parent))
        handle = _locked(new, needed=True)
    new.chmod(0o755)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
        os.close(handle)


def _locked(directory: Path, *, needed: bool = False) -> int | None:
    """A handle that locks a directory, until it is closed or the process ends; None: it is gone,
    or in use. needed: without the lock where directories cannot be locked"""
    with suppress(FileNotFoundError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if directory.exists():
                return handle
        except OSError as error:
            if needed and error.errno not in (errno.EAGAIN, errno.EACCES):
                return handle
        os.close(handle)
    return None
