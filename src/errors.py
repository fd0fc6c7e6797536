"""The one exception that a user is meant to read, and what its messages are made of."""

import errno
import os
from importlib.util import find_spec
from pathlib import Path

TEXT_PACKAGES = "requirements-text.txt"  # sentence-transformers, transformers, open_clip, peft


MORE_ROOM = (
    "Free some space (or raise the limit) and run the same command again, it continues where it "
    "stopped."
)
NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your share of the disk is full",
    errno.EFBIG: "larger than a file may be here (see `ulimit -f`)",
}
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class UserError(Exception):
    """Something the user can put right.

    The message names the file, what was found, what was expected and what to do. Scripts print it
    without a traceback and exit with status 2.
    """


def some(items, limit: int = 3) -> str:
    """A short, readable sample of many things: `'a', 'b', 'c' and 12 more`."""
    items = [item.item() if hasattr(item, "item") else item for item in items]  # numpy scalars
    text = ", ".join(repr(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"


def shortened(text: str, limit: int = 200) -> str:
    """Text of others in a message: not pages of it."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def read_text(path: str | Path, expected: str = "a text file") -> str:
    """A UTF-8 file, with or without byte order mark. Errors: UserError for one that is none."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); expected {expected}. Save "
            "it as UTF-8."
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from None


def no_room(error: Exception) -> str | None:
    """Why something was not written for want of room, in words; libraries that write by themselves
    pass the system's words on in exceptions of their own."""
    if isinstance(error, OSError):
        return NO_ROOM.get(error.errno)
    return next((words for code, words in NO_ROOM.items() if os.strerror(code) in str(error)), None)


def needs(package: str, key: str) -> None:
    """Errors: UserError where a package that only `key` asks for is missing."""
    if find_spec(package) is None:
        raise UserError(
            f"{key}: needs the package {package}, which is not installed; run `pip install -r "
            f"{TEXT_PACKAGES}`"
        )
