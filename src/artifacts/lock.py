"""Who works on what: locks that the system lets go of when a process ends, in whatever way.

The lock of a directory is a hidden file beside it, so that the directory can be removed by whoever
holds it. The file stays; it says who holds the lock, or held it last.
"""

import errno
import fcntl
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from src import cli
from src.errors import READ_ONLY, UserError

TAKEN = (errno.EACCES, errno.EAGAIN)  # what fcntl says when another process has the lock
# what some network file systems say
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
# By path. Closing any second handle of a file would let go of its lock, so there is only this one
_mine: dict[Path, IO] = {}


def lock_file(directory: Path) -> Path:
    """Beside a directory (or file)."""
    return directory.with_name(f".{directory.name}.lock")


def own(directory: Path) -> None:
    """Hold a directory until `let_go`, or until this process ends.

    Errors: UserError that says who holds it already.
    """
    if who := take(lock_file(directory)):
        raise UserError(
            f"{directory}: {who} works on it. Wait until that has ended, or stop it, and run this "
            "command again."
        )


def let_go(directory: Path) -> None:
    """Nothing happens if this process does not hold it."""
    drop(lock_file(directory))


@contextmanager
def locked(directory: Path, *, wait: bool = True, main: bool = True) -> Iterator[None]:
    """One process at a time; the others wait, or stop with an error as in `own`.

    main: False in all but one of the processes of a launch, which go in together
    """
    if main and wait:
        take(lock_file(directory), wait=True)
    elif main:
        own(directory)
    try:
        yield
    finally:
        if main:
            let_go(directory)


def take(path: Path, *, wait: bool = False) -> str | None:
    """Lock a file, which need not exist; None, or who holds it.

    Where files cannot be locked, everyone gets the lock.
    """
    path = path.absolute()
    if path in _mine:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab+", buffering=0)  # noqa: SIM115 (held open as long as the lock)
    except OSError as error:
        if error.errno in READ_ONLY:  # then nothing can be written there anyway
            return None
        raise
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in TAKEN:
            with file:
                return _holder(file)
        if error.errno not in NO_LOCKS:
            raise
        _say_without(str(path.parent))
    with suppress(OSError):  # of a full disk: it is locked all the same, without a word of who
        file.truncate(0)
        file.write(_about_me().encode())
    _mine[path] = file
    return None


def drop(path: Path) -> None:
    if file := _mine.pop(path.absolute(), None):
        file.close()


def _about_me() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {platform.node()} (since {since}: {shlex.join(sys.argv)})"


def _holder(file: IO) -> str:
    for pause in (0, 0.1):  # it may have locked the file and not written yet
        time.sleep(pause)
        file.seek(0)
        if text := file.read():
            return text.decode(errors="replace")
    return "another process"


@cache
def _say_without(directory: str) -> None:
    cli.say(f"{directory}: files cannot be locked here; do not start one command twice at once")
