"""The one exception that a user is meant to read."""


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
