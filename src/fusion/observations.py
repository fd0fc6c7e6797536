"""Images of one observation (one specimen, photographed several times) share a prediction.

With l_i = log p_i of the images i = 1 … m of an observation and z its shared logits, which are then
normalised:

    mean        z = 1/m Σ_i l_i
    max         z(c) = max_i l_i(c)
    attention   z = Σ_i a_i l_i,   a = softmax_i(β κ_i),
                κ_i = max_c l_i(c)  or, of entropy,  Σ_c p_i(c) l_i(c)

β is `observations.strength`; 0 is the mean. In scores an observation counts once, however many
images it has: its images are right or wrong together. One image alone keeps its logits, bit by bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from src.artifacts.space import space
from src.config.judge import Judge
from src.config.observations import Observations as Keys
from src.config.schema import Config
from src.errors import UserError, some
from src.metrics import CHUNK, OUTCOMES, Gain, paired_gain, surprise

STRENGTHS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # that are tried, the mean first


@dataclass(frozen=True)
class Observations:
    """of: [N], the observation of each image: 0 … U-1 in the order of their first images · keys:
    how their images share a prediction; β is `keys.strength`"""

    of: np.ndarray
    keys: Keys = field(default_factory=Keys)

    @property
    def sizes(self) -> np.ndarray:
        """Images of each observation, [U]."""
        return np.bincount(self.of)

    @property
    def first(self) -> np.ndarray:
        """The first image of each observation, [U]: for what its images have in common."""
        return np.unique(self.of, return_index=True)[1]

    def with_strength(self, strength: float) -> "Observations":
        return replace(self, keys=self.keys.model_copy(update={"strength": strength}))

    def rows(self, which: np.ndarray) -> "Observations":
        """Those of some images (a mask, [N]), which hold all of an observation or none."""
        return replace(self, of=pd.factorize(self.of[which])[0])

    def parts(self, columns: int) -> Iterator[tuple[np.ndarray, "Observations"]]:
        """Whole observations, in order, a chunk of logits with so many columns at a time: their
        images' rows and the observations among these."""
        order, ends = np.argsort(self.of, kind="stable"), np.cumsum(self.sizes)
        room, start = max(1, CHUNK // max(columns, 1)), 0
        while start < len(order):
            fits = np.searchsorted(ends, start + room, side="right")
            begun = np.searchsorted(ends, start, side="right")
            end = int(ends[max(fits - 1, begun)])  # one that is too large is a chunk of its own
            rows = order[start:end]
            yield rows, replace(self, of=self.of[rows] - self.of[rows[0]])
            start = end

    def pool(self, logits: np.ndarray) -> np.ndarray:
        """Logits [N, K] of images → [U, K] of observations."""
        out = np.array(logits[self.first], np.float32)  # [U, K]
        if (self.sizes == 1).all():
            return out
        for rows, part in self.parts(logits.shape[1]):
            several = np.flatnonzero(part.sizes > 1)
            inside = np.flatnonzero(part.sizes[part.of] > 1)  # of `rows`, by observation
            if len(several):
                starts = np.searchsorted(part.of[inside], several)
                shared = _shared(logits[rows[inside]], starts, self.keys)
                out[self.of[rows[0]] + several] = shared
        return out


def _shared(logits: np.ndarray, starts: np.ndarray, keys: Keys) -> np.ndarray:
    """z [u, K] of observations whose images lie one after the other in `logits` [n, K], from
    `starts` [u] on."""
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    sizes = np.diff([*starts, len(log_p)])  # [u]
    if keys.pool == "max":
        return log_softmax(np.maximum.reduceat(log_p, starts), axis=1)
    weight = np.ones(len(log_p))
    if keys.pool == "attention":
        entropy = keys.confidence == "entropy"
        sure = (np.exp(log_p) * log_p).sum(1) if entropy else log_p.max(1)
        sure = keys.strength * sure
        weight = np.exp(sure - np.repeat(np.maximum.reduceat(sure, starts), sizes))
    weight /= np.repeat(np.add.reduceat(weight, starts), sizes)
    return log_softmax(np.add.reduceat(weight[:, None] * log_p, starts), axis=1)


def observations_of(config: Config, table: pd.DataFrame, ids, origin) -> Observations | None:
    """Those of the images `ids` [N] of folds.csv or test.csv, which `origin` names; None where
    data.observation is not set. An image without a value is an observation of its own.

    Errors: UserError when the table has no such column, or an observation is in several folds.
    """
    column = config.data.observation
    if column is None:
        return None
    again = "run 01 with --overwrite"
    if column not in table:
        raise UserError(
            f"{origin}: column {column!r} (data.observation) is missing, it has {some(table)}; "
            f"{again}"
        )
    values = table[column].str.strip()
    if "fold" in table:
        folds = table["fold"][values != ""].groupby(values).nunique()
        if split := sorted(folds.index[folds > 1]):
            raise UserError(
                f"{origin}: images of one {column} are in different folds: {some(split)}; the "
                f"folds were made without data.observation, {again}"
            )
    ids = np.asarray(ids).astype(str)
    own = values.set_axis(table["image_id"]).loc[ids].to_numpy(str)
    return Observations(numbered(ids, own), config.observations)


def numbered(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[N] numbers of observations in the order of their first images; of images `ids` without a
    value one each."""
    pairs = ((i, v.strip()) for i, v in zip(ids, values, strict=True))
    keys = [(v, "") if v else ("", i) for i, v in pairs]
    return pd.factorize(pd.Series(keys, dtype=object))[0]


def names_of(table: pd.DataFrame, column: str, origin) -> np.ndarray:
    """What each image's observation is called, [N]: its value, or its own id without one.

    Errors: UserError where an image without a value has the id of an observation.
    """
    ids, values = (table[name].to_numpy(str) for name in ("image_id", column))
    alone = np.char.strip(values) == ""
    if taken := sorted(set(ids[alone]) & set(values[~alone])):
        raise UserError(
            f"{origin}: images {some(taken)} have no value of {column!r}, and observations of "
            "others are called as they are; give them a value"
        )
    return np.where(alone, ids, np.char.strip(values))


@dataclass(frozen=True)
class Strength:
    """value: β for images that nothing was fitted on · per_fold: β fitted without that fold · kept,
    reason: by the judge, and why · gain: cross-fitted, over the mean"""

    value: float
    per_fold: dict[int, float]
    kept: bool = True
    reason: str = "as observations.strength asks for"
    gain: Gain = Gain()

    def facts(self) -> dict:
        found = {k: v for k, v in self.gain.named().items() if v == v}
        return {"strength": self.value, "kept": self.kept, "reason": self.reason, **found}


def fitted_strength(
    logits: dict[int, np.ndarray],
    labels: dict[int, np.ndarray],
    observed: dict[int, Observations],
    metric: str,
    rule: Judge,
) -> Strength:
    """β of attention by likelihood of the shared predictions, for each fold on the others, kept
    where `rule` keeps it over the mean; as the keys have it where they fix it.

    By fold: logits [n, K] and labels [n] of its images, and their observations.
    """
    folds, keys = list(logits), next(iter(observed.values())).keys
    if not keys.fitted:
        fixed = keys.strength or 0.0
        return Strength(fixed, dict.fromkeys(folds, fixed))
    mean = dict.fromkeys(folds, 0.0)
    if len(folds) < 2:
        return Strength(0.0, mean, False, "one fold: nothing to judge on what it never saw")
    true = {k: labels[k][observed[k].first] for k in folds}
    num_classes = next(iter(logits.values())).shape[1]

    def pooled(k: int, b: float) -> np.ndarray:
        return observed[k].with_strength(b).pool(logits[k])

    loss = {(k, b): surprise(pooled(k, b), true[k]).sum() for k in folds for b in STRENGTHS}

    def best(seen: list[int]) -> float:
        return min(STRENGTHS, key=lambda b: sum(loss[k, b] for k in seen))

    per_fold = {k: best([j for j in folds if j != k]) for k in folds}
    before, after = (
        np.concatenate([OUTCOMES[metric](pooled(k, chosen[k]), true[k]) for k in folds])
        for chosen in (mean, per_fold)
    )
    label = np.concatenate([true[k] for k in folds])
    gain = paired_gain(before, after, label, num_classes, metric)
    told = f"attention's cross-fitted gain over the mean {gain}"
    if fails := gain.fails(rule):
        return Strength(0.0, mean, False, f"{told} {fails}", gain)
    return Strength(best(folds), per_fold, True, told, gain)


def cross_fitted(
    logits: np.ndarray,
    label: np.ndarray,
    fold: np.ndarray,
    observed: Observations,
    metric: str,
    rule: Judge,
) -> tuple[np.ndarray, Strength]:
    """Logits [N, K] of out-of-fold images → [U, K] of observations, each fold with the β that was
    fitted on the others."""
    rows = {k: fold == k for k in np.unique(fold).tolist()}
    parts = {k: observed.rows(mask) for k, mask in rows.items()}
    by_fold = ({k: array[mask] for k, mask in rows.items()} for array in (logits, label))
    strength = fitted_strength(*by_fold, parts, metric, rule)
    of_fold = fold[observed.first]  # [U]
    out = space((len(of_fold), logits.shape[1]))
    for k, part in parts.items():
        out[of_fold == k] = part.with_strength(strength.per_fold[k]).pool(logits[rows[k]])
    return out, strength
