"""The key that says how often the leaderboard's images are of each class.

It stands beside `metric`, not in the section of a step: like the metric it is a fact about the
competition, read by 04 (steps, and the judge of all steps) and by 06 (combiners, label shift).
"""

from typing import Annotated, Any

from pydantic import BeforeValidator

BALANCED, TRAIN, PRESENT = "balanced", "train", "uniform-over-present"
NAMES = (BALANCED, TRAIN, PRESENT)


def _checked(value: Any) -> Any:
    """Errors: ValueError unless it is one of NAMES, or the name of a CSV."""
    if isinstance(value, str) and value not in NAMES and not value.lower().endswith(".csv"):
        raise ValueError(
            f"found {value!r}; expected {', '.join(NAMES)}, or a file *.csv with the columns "
            "class_id and prior"
        )
    return value


TargetPrior = Annotated[str, BeforeValidator(_checked)]
