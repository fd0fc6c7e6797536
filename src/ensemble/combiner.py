"""What a combiner is: the log-probabilities of many members → those of one.

A combiner is one file with a subclass of `Combiner`, a section of keys in src/config/ensemble.py,
and one line in the table `COMBINERS`. Its parameters are plain data, or arrays where they are many
(src/fusion/store.py). It treats each image by itself, so that rows come in chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from src.config.section import Section
from src.metrics import LOWER_IS_BETTER, OUTCOMES, SCORES, chunks

Params = dict  # numbers, texts, lists of them, arrays
Members = list[np.ndarray]  # log-probabilities [N, K] of each, sorted by name


class Combiner:
    """One way of combining, with its keys."""

    def __init__(self, section: Section):
        self.section = section

    def fit(self, pool: "Pool", rows: np.ndarray) -> Params:
        """Parameters from the images `rows` (a mask, [N]) of the pool alone."""
        raise NotImplementedError

    @staticmethod
    def combine(members: Members, params: Params) -> np.ndarray:
        """Log-probabilities [N, K]; a constant per image may be added to them."""
        raise NotImplementedError

    @staticmethod
    def shares(params: Params) -> list[float] | None:
        """The weight of each member, sum 1, for tables; None: there is no such thing."""
        return None


@dataclass(frozen=True)
class Pool:
    """The out-of-fold images that combiners are fitted and judged on.

    members: log-probabilities [N, K] · labels: [N] · metric: what the competition scores by ·
    bins: [K], the number of each class's frequency bin; None: all are in one
    """

    members: Members
    labels: np.ndarray
    metric: str
    bins: np.ndarray | None = None
    _known: dict = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_classes(self) -> int:
        return self.members[0].shape[1]

    def outcome(self, combine: Callable[[Members], np.ndarray]) -> np.ndarray:
        """[N], see src/metrics/outcomes.py, of combined members."""
        parts = [
            OUTCOMES[self.metric](combine([m[rows] for m in self.members]), self.labels[rows])
            for rows in chunks(*self.members[0].shape)
        ]
        return np.concatenate(parts)

    def part(self, rows: np.ndarray) -> "Pool":
        """The images `rows` alone, copied."""
        return Pool([m[rows] for m in self.members], self.labels[rows], self.metric, self.bins)

    def score(self, outcome: np.ndarray, rows: np.ndarray) -> float:
        """Of an outcome of all images, on `rows`; higher is better, whatever the metric."""
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        return sign * SCORES[self.metric](outcome[rows], self.labels[rows], self.num_classes)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What does not depend on `rows`: made once, however many folds ask for it."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def average(arrays: Members, weights: list[float]) -> np.ndarray:
    """Σ w_i a_i, [N, K] float32; members without weight are left out."""
    out = np.zeros(arrays[0].shape, np.float32)
    for array, weight in zip(arrays, weights, strict=True):
        if weight:
            out += np.float32(weight) * array
    return out


def average_probabilities(arrays: Members, weights: list[float]) -> np.ndarray:
    """log Σ w_i exp(a_i), [N, K] float32."""
    out = np.full(arrays[0].shape, -np.inf, np.float32)
    for array, weight in zip(arrays, weights, strict=True):
        if weight:
            np.logaddexp(out, array + np.float32(np.log(weight)), out=out)
    return out
