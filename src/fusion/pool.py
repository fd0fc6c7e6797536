"""Several predictions of the same images, as log-probabilities: an ensemble's members, views.

Below the rooms of the stages, for 05 weighs views by what 06 weighs members by.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from src.metrics import OUTCOMES, SCORES, chunks, importance, sign

Members = list[np.ndarray]  # log-probabilities [N, K] of each, sorted by name


@dataclass(frozen=True)
class Pool:
    """The out-of-fold images that combiners are fitted and judged on.

    members: log-probabilities [N, K] · labels: [N] · metric: what the competition scores by ·
    bins: [K], the number of each class's frequency bin; None: all are in one · target: [K] class
    prior under which the competition scores; None: that of the images
    """

    members: Members
    labels: np.ndarray
    metric: str
    bins: np.ndarray | None = None
    target: np.ndarray | None = None
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

    def score(self, outcome: np.ndarray, rows: np.ndarray) -> float:
        """Of an outcome of all images, on `rows`; higher is better, whatever the metric."""
        labels = self.labels[rows]
        weights = importance(labels, self.target)
        found = SCORES[self.metric](outcome[rows], labels, self.num_classes, weights)
        return sign(self.metric) * found

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
