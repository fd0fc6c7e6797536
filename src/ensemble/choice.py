"""The one judge of all combiners: what is fitted must beat the mean on images it never saw."""

from dataclasses import dataclass

import numpy as np

from src.artifacts.space import space
from src.config.judge import Judge
from src.config.section import Section
from src.ensemble.combiner import Members, Params, Pool
from src.ensemble.combiners import COMBINERS
from src.ensemble.mean import equal
from src.metrics import OUTCOMES, Gain, chunks, paired_gain

SINGLE = "single"  # the way of combining one member


@dataclass(frozen=True)
class Choice:
    """name: of the combiner that is used · final: its parameters · per_fold: those fitted without
    that fold · method: the name, or SINGLE for one member · reason: why · gain: cross-fitted, of
    what was asked for over the mean, whether it is used or not"""

    name: str
    method: str
    reason: str
    final: Params
    per_fold: dict[int, Params]
    gain: Gain = Gain()

    @property
    def shares(self) -> list[float] | None:
        return COMBINERS[self.name].shares(self.final)

    def combine(self, members: Members) -> np.ndarray:
        """Log-probabilities [N, K] with `final`; made in chunks. Of one member they are its own
        array."""
        if self.method == SINGLE:
            return members[0]
        out = space(members[0].shape)
        for rows in chunks(*out.shape):
            part = [m[rows] for m in members]
            out[rows] = COMBINERS[self.name].combine(part, self.final)
        return out

    def outcome(self, pool: Pool, fold: np.ndarray) -> np.ndarray:
        """[N], see src/metrics/outcomes.py, of the pool's members combined as in `cross_fitted`."""
        return _outcome(pool, fold, self.name, self.per_fold)

    def cross_fitted(self, members: Members, fold: np.ndarray) -> np.ndarray:
        """[N, K], each fold with the parameters that were fitted on the others. Of one member they
        are its own array."""
        if self.method == SINGLE:
            return members[0]
        out = space(members[0].shape)
        for rows in chunks(*out.shape):
            part = [m[rows] for m in members]
            out[rows] = _by_fold(part, fold[rows], self.name, self.per_fold)
        return out


def choose(
    members: Members,
    labels: np.ndarray,
    fold: np.ndarray,
    metric: str,
    section: Section,
    rule: Judge,
    bins: np.ndarray | None = None,
    target: np.ndarray | None = None,
) -> Choice:
    """members: log-probabilities [N, K], sorted by name · labels, fold: [N] · section: of the
    combiner that is asked for, which is kept if it passes `rule`; otherwise it is the mean · bins:
    [K] numbers of the classes' frequency bins, None: all are in one · target: [K] class prior under
    which scores are meant, None: that of the images"""
    folds = np.unique(fold).tolist()
    mean = equal(len(members))
    same = {k: mean for k in folds}
    if len(members) == 1:
        return Choice("mean", SINGLE, "there is one member", mean, same)
    combiner = COMBINERS[section.name](section)
    if section.name == "mean":
        return Choice("mean", "mean", "asked for", mean, same)
    if len(folds) == 1:
        reason = f"{section.name} needs two folds or more, to be judged on what it never saw"
        return Choice("mean", "mean", reason, mean, same)
    pool = Pool(members, labels, metric, bins, target)
    per_fold = {k: combiner.fit(pool, fold != k) for k in folds}
    before, after = (
        _outcome(pool, fold, name, params)
        for name, params in (("mean", same), (section.name, per_fold))
    )
    gain = paired_gain(before, after, labels, pool.num_classes, metric, target)
    told = f"{section.name}'s cross-fitted gain over the mean {gain}"
    if fails := gain.fails(rule):
        return Choice("mean", "mean", f"{told} {fails}", mean, same, gain)
    final = combiner.fit(pool, np.ones(len(labels), bool))
    return Choice(section.name, section.name, told, final, per_fold, gain)


def _outcome(pool: Pool, fold: np.ndarray, name: str, per_fold: dict[int, Params]) -> np.ndarray:
    """Outcomes [N] of a combiner, each fold with its own parameters."""
    found = []
    for rows in chunks(*pool.members[0].shape):
        part = _by_fold([m[rows] for m in pool.members], fold[rows], name, per_fold)
        found.append(OUTCOMES[pool.metric](part, pool.labels[rows]))
    return np.concatenate(found)


def _by_fold(
    members: Members, fold: np.ndarray, name: str, per_fold: dict[int, Params]
) -> np.ndarray:
    """[n, K] of a few rows, each with the parameters of its fold."""
    out = np.empty(members[0].shape, np.float32)
    for k in np.unique(fold).tolist():
        own = fold == k
        out[own] = COMBINERS[name].combine([m[own] for m in members], per_fold[k])
    return out
