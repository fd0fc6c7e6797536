"""Frequency bands of classes, by name and by number."""

import numpy as np

from src.errors import UserError

BINS = {"thresholds": ("many", "medium", "few"), "halves": ("head", "tail")}
BINS["terciles"] = BINS["thresholds"]


def bin_numbers(bins: np.ndarray) -> np.ndarray:
    """[K] names of bins → [K] numbers; 0 is the most frequent of the bins that have classes."""
    order = dict.fromkeys(name for names in BINS.values() for name in names)
    present = [name for name in order if name in set(bins)]
    return np.array([present.index(name) for name in bins])


def need_bins(count: int, what: str) -> None:
    """Errors: UserError unless there are two bins or more: there is nothing to tell apart."""
    if count < 2:
        raise UserError(
            f"{what} needs classes in two bins or more, found {count}; change bins.many and "
            "bins.few, or set bins.mode=terciles, and run 01 again"
        )


def bin_names(bins: np.ndarray) -> list[str]:
    """The bins that occur, most frequent classes first."""
    order = ("many", "medium", "few", "head", "tail")
    return [name for name in order if name in set(bins)]
