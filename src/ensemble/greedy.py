"""Ensemble selection with replacement (Caruana et al., ICML 2004)."""

import math

import numpy as np

from src.ensemble.combiner import Params, Pool
from src.ensemble.mean import Mean
from src.fusion.pool import average

Counts = tuple[int, ...]  # how often each member was selected


class Greedy(Mean):
    """Add the member that helps the score on `rows` most, `rounds` times; the best ensemble on the
    way wins. Ties go to the member that is first by name, and to the smaller ensemble."""

    def fit(self, pool: Pool, rows: np.ndarray) -> Params:
        members = len(pool.members)
        counts: Counts = (0,) * members
        best, best_counts = -math.inf, counts
        for _ in range(self.section.rounds):
            options = [tuple(c + (i == j) for j, c in enumerate(counts)) for i in range(members)]
            scores = [pool.score(_outcome(pool, option), rows) for option in options]
            counts = options[int(np.argmax(scores))]
            if max(scores) > best:
                best, best_counts = max(scores), counts
        return {"shares": _shares(best_counts)}


def _outcome(pool: Pool, counts: Counts) -> np.ndarray:
    """[N], of the members averaged in these proportions."""
    counts = tuple(c // math.gcd(*counts) for c in counts)
    shares = _shares(counts)
    return pool.once(("greedy", counts), lambda: pool.outcome(lambda part: average(part, shares)))


def _shares(counts: Counts) -> list[float]:
    return [c / sum(counts) for c in counts]
