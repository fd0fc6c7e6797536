"""Weights of an ensemble's members: the mean, or a greedy selection where it is really better."""

import math
from dataclasses import dataclass, field

import numpy as np

from src.ensemble.members import average
from src.metrics import OUTCOMES, SCORES, chunks, paired_gain

Counts = tuple[int, ...]  # how often each member was selected


@dataclass(frozen=True)
class Weights:
    """final: by member, sum 1 · per_fold: what was selected without that fold; the same as `final`
    unless greedy was kept · gain: cross-fitted, of greedy over the mean · noise: its standard
    error"""

    method: str
    reason: str
    final: list[float]
    per_fold: dict[int, list[float]]
    gain: float | None = None
    noise: float | None = None


def choose(
    members: list[np.ndarray],
    labels: np.ndarray,
    fold: np.ndarray,
    metric: str,
    method: str,
    rounds: int,
) -> Weights:
    """members: log-probabilities [N, K], sorted by name · labels, fold: [N] · method: mean | greedy

    Greedy is kept only if its cross-fitted gain over the mean is above one standard error.
    """
    count, folds = len(members), np.unique(fold).tolist()
    equal = [1 / count] * count
    same = {k: equal for k in folds}
    if count == 1:
        return Weights("single", "there is one member", equal, same)
    if method == "mean":
        return Weights("mean", "asked for", equal, same)
    pool = _Pool(members, labels, metric)
    per_fold = {k: greedy(pool, fold != k, rounds) for k in folds}
    chosen = np.empty_like(pool.outcome((1,) * count))
    for k in folds:
        chosen[fold == k] = pool.outcome(per_fold[k])[fold == k]
    gain, noise = paired_gain(pool.outcome((1,) * count), chosen, labels, pool.num_classes, metric)
    told = f"greedy's cross-fitted gain over the mean {gain:+.4f}, standard error {noise:.4f}"
    if not gain > noise:
        return Weights("mean", f"{told}: within noise", equal, same, gain, noise)
    final = greedy(pool, np.ones(len(labels), bool), rounds)
    shares = {k: _shares(counts) for k, counts in per_fold.items()}
    return Weights("greedy", told, _shares(final), shares, gain, noise)


def greedy(pool: "_Pool", rows: np.ndarray, rounds: int) -> Counts:
    """Ensemble selection with replacement (Caruana et al., ICML 2004): add the member that helps
    the score on `rows` most, `rounds` times; the best ensemble on the way wins. Ties go to the
    member that is first by name, and to the smaller ensemble."""
    counts: Counts = (0,) * pool.members
    best, best_counts = -math.inf, counts
    for _ in range(rounds):
        options = [tuple(c + (i == j) for j, c in enumerate(counts)) for i in range(pool.members)]
        scores = [pool.score(option, rows) for option in options]
        counts = options[int(np.argmax(scores))]
        if max(scores) > best:
            best, best_counts = max(scores), counts
    return best_counts


@dataclass(frozen=True)
class _Pool:
    """Outcomes of ensembles, each computed once however many folds ask for it."""

    arrays: list[np.ndarray]
    labels: np.ndarray
    metric: str
    _known: dict[Counts, np.ndarray] = field(default_factory=dict)

    @property
    def members(self) -> int:
        return len(self.arrays)

    @property
    def num_classes(self) -> int:
        return self.arrays[0].shape[1]

    def outcome(self, counts: Counts) -> np.ndarray:
        """[N], see src/metrics.py, of the members averaged in these proportions."""
        counts = tuple(c // math.gcd(*counts) for c in counts)
        if counts not in self._known:
            parts = [
                OUTCOMES[self.metric](
                    average([a[rows] for a in self.arrays], _shares(counts)), self.labels[rows]
                )
                for rows in chunks(*self.arrays[0].shape)
            ]
            self._known[counts] = np.concatenate(parts)
        return self._known[counts]

    def score(self, counts: Counts, rows: np.ndarray) -> float:
        outcome = self.outcome(counts)[rows]
        return SCORES[self.metric](outcome, self.labels[rows], self.num_classes)


def _shares(counts: Counts) -> list[float]:
    return [c / sum(counts) for c in counts]
