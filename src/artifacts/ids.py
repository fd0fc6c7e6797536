"""Everything joins by `image_id`, and says what is missing."""

import numpy as np

from src.errors import UserError, some


def check_unique(ids, origin, todo: str = "") -> None:
    """todo: what to do about it. Errors: UserError that names ids that occur twice."""
    values, counts = np.unique(np.asarray(ids, dtype=str), return_counts=True)
    twice = values[counts > 1]
    if len(twice):
        more = f". {todo}." if todo else ""
        raise UserError(
            f"{origin}: {len(twice)} image ids occur more than once: {some(twice)}{more}"
        )


def check_same_ids(found, expected, found_name: str, expected_name: str) -> None:
    """Errors: UserError with the counts and examples of what is missing on either side."""
    found, expected = set(map(str, found)), set(map(str, expected))
    if found != expected:
        lacking, extra = sorted(expected - found), sorted(found - expected)
        raise UserError(
            f"{found_name} ({len(found)} images) and {expected_name} ({len(expected)}) differ: "
            f"{len(lacking)} missing ({some(lacking)}), {len(extra)} too many ({some(extra)})"
        )
