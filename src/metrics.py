"""Scores of logits, always with an explicit set of K classes. numpy only.

logits: [N, K] · labels: [N] in 0 … K-1 · bins: [K] names such as many / medium / few

Each score is a function of one small fact per image, its `outcome`: the predicted label, whether
the true class is among the top five, or the negative log-likelihood. A search over many candidate
logits keeps their outcomes, [N], and never the logits. Rows are read in chunks, so that no score
needs memory of the size of the logits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from src.config.outputs import Judge
from src.errors import UserError

BINS = {"thresholds": ("many", "medium", "few"), "halves": ("head", "tail")}
BINS["terciles"] = BINS["thresholds"]
CHUNK = 2**22  # logits that are worked on at once
DRAWS = 200  # of the bootstrap
NORMAL = 1.96  # standard errors on either side of a 95 % interval
LOWER_IS_BETTER = ("nll", "ece")


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


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices that cover 0 … rows-1, each of at most about CHUNK numbers."""
    step = max(1, CHUNK // max(columns, 1))
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


# ---- one fact per image ------------------------------------------------------------------------


def predicted(logits: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """The label with the largest logit, the smaller label of equals, [N]."""
    return logits.argmax(1)


def among_five(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether fewer than five classes are above the true one, [N]; ties count against it."""
    true = np.take_along_axis(logits, labels[:, None], 1)
    return (logits >= true).sum(1) - 1 < 5


def surprise(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of the true class in nats, float64 [N]."""
    out = np.empty(len(logits))
    for rows in chunks(*logits.shape):
        z = logits[rows].astype(np.float64)
        out[rows] = logsumexp(z, axis=1) - np.take_along_axis(z, labels[rows, None], 1)[:, 0]
    return out


# ---- scores of outcomes ------------------------------------------------------------------------


# drawn: [N] how often each image counts, as in a bootstrap; None: each once


def _right(outcome, labels, num_classes, drawn):
    hits = outcome == labels
    return np.bincount(labels, hits if drawn is None else hits * drawn, num_classes)


def _recalls(outcome, labels, num_classes, drawn=None):
    total = np.bincount(labels, drawn, num_classes)
    right = _right(outcome, labels, num_classes, drawn)
    return np.divide(right, total, out=np.full(num_classes, np.nan), where=total > 0)


def _accuracy(outcome, labels, num_classes, drawn=None):
    return _mean(outcome == labels, labels, num_classes, drawn)


def _balanced_accuracy(outcome, labels, num_classes, drawn=None):
    return float(np.nanmean(_recalls(outcome, labels, num_classes, drawn)))


def _macro_f1(outcome, labels, num_classes, drawn=None):
    support = np.bincount(labels, drawn, num_classes)
    claimed = np.bincount(outcome, drawn, num_classes)
    right = _right(outcome, labels, num_classes, drawn)
    return float(np.mean(2 * right / np.maximum(support + claimed, 1)))


def _mean(outcome, labels, num_classes, drawn=None):
    return float(np.mean(outcome) if drawn is None else outcome @ drawn / len(drawn))


OUTCOMES: dict[str, Callable] = {
    "accuracy": predicted,
    "balanced_accuracy": predicted,
    "macro_f1": predicted,
    "top5": among_five,
    "nll": surprise,
}
SCORES: dict[str, Callable] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "top5": _mean,
    "nll": _mean,
}


# ---- is a difference real? ---------------------------------------------------------------------


class Gain(NamedTuple):
    """How much better one score is than another, > 0 is better, and the standard error of that."""

    value: float = float("nan")
    noise: float = float("nan")

    @property
    def low(self) -> float:
        """Of the 95 % interval."""
        return self.value - NORMAL * self.noise

    @property
    def high(self) -> float:
        return self.value + NORMAL * self.noise

    def __str__(self) -> str:
        return gain_text(self.value, self.low, self.high)

    def named(self) -> dict[str, float]:
        """As tables and JSON have it."""
        return {"gain": self.value, "gain_low": self.low, "gain_high": self.high}

    def fails(self, rule: Judge) -> str | None:
        """Why what brought this gain is not kept, or None; the one rule of 04 and 06."""
        if not self.value > rule.min_gain:
            return f"is not above {rule.min_gain:g}"
        if not self.value > rule.standard_errors * self.noise:
            return f"is within noise: not above {rule.standard_errors:g} x {self.noise:.4f}"
        return None


def rule_text(rule: Judge) -> str:
    """The rule of the section `judge` in words."""
    return (
        f"Kept is what gains more than {rule.min_gain:g} and more than {rule.standard_errors:g} "
        f"standard errors of the gain, cross-fitted (paired bootstrap over the out-of-fold images, "
        f"{DRAWS} draws); in brackets the 95 % interval."
    )


def gain_text(value: float, low: float, high: float) -> str:
    """`+0.012 [+0.003, +0.021]`, without the interval where it is not known; empty for NaN."""
    if value != value:
        return ""
    return f"{value:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if low == low else "")


def paired_gain(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, num_classes: int, metric: str
) -> Gain:
    """How much better outcomes `after` score than `before`, and the standard error of that:
    bootstrap over images, both scored on the same draws, always the same ones."""
    images, sign = len(labels), -1 if metric in LOWER_IS_BETTER else 1

    def difference(drawn=None):
        a, b = (SCORES[metric](x, labels, num_classes, drawn) for x in (after, before))
        return sign * (a - b)

    rng = np.random.default_rng(0)
    draws = [
        difference(np.bincount(rng.integers(images, size=images), minlength=images).astype(float))
        for _ in range(DRAWS)
    ]
    return Gain(difference(), float(np.std(draws, ddof=1)))


# ---- scores of logits --------------------------------------------------------------------------


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose largest logit is the true class."""
    return _accuracy(predicted(logits), labels, logits.shape[1])


def recalls(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of each class's images that are right, [K]; NaN for classes without an image."""
    return _recalls(predicted(logits), labels, logits.shape[1])


def balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean recall over the classes that have an image."""
    return _balanced_accuracy(predicted(logits), labels, logits.shape[1])


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """F1 per class, averaged over all K classes; a class neither present nor predicted counts 0."""
    return _macro_f1(predicted(logits), labels, logits.shape[1])


def top5(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of images with fewer than five classes above the true one; ties count against it."""
    return float(np.mean(among_five(logits, labels)))


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the true class, in nats."""
    return float(np.mean(surprise(logits, labels)))


def calibration(
    logits: np.ndarray, labels: np.ndarray, bins: int = 15
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Expected calibration error (Guo et al. 2017) and the reliability diagram behind it.

    Returns ece, and per confidence bin: mean confidence, accuracy (NaN where empty), images.
    """
    return outcomes_of(logits, labels).calibration(labels, bins)


@dataclass(frozen=True)
class Outcomes:
    """Everything about some images that `summary` needs, so that their logits can go.

    predicted, among_five, surprise: as the functions above · confidence: the probability of the
    predicted class; [N] each
    """

    predicted: np.ndarray
    among_five: np.ndarray
    surprise: np.ndarray
    confidence: np.ndarray

    def rows(self, which: np.ndarray) -> "Outcomes":
        return Outcomes(*(array[which] for array in vars(self).values()))

    def calibration(self, labels: np.ndarray, bins: int = 15):
        """ECE and its diagram, see `calibration`."""
        right, confidence = self.predicted == labels, self.confidence
        which = np.minimum((confidence * bins).astype(int), bins - 1)
        size = np.bincount(which, minlength=bins)
        mean, share = (
            np.divide(np.bincount(which, x, bins), size, out=np.full(bins, np.nan), where=size > 0)
            for x in (confidence, right)
        )
        return float(np.nansum(size * np.abs(mean - share)) / size.sum()), mean, share, size

    def summary(self, labels: np.ndarray, bins: np.ndarray, calibrated=None) -> dict[str, float]:
        """See `summary`; `calibrated` is what `self.calibration` returned, if it is known."""
        found = {"top5": self.among_five, "nll": self.surprise}
        row = {
            name: SCORES[name](found.get(name, self.predicted), labels, len(bins))
            for name in METRICS
        }
        recall = _recalls(self.predicted, labels, len(bins))
        for name in bin_names(bins):
            inside = recall[bins == name]
            known = inside[~np.isnan(inside)]
            row[name] = float(known.mean()) if len(known) else float("nan")
        ece = (calibrated or self.calibration(labels))[0]
        return row | {"nll": float(np.mean(self.surprise)), "ece": ece}


def outcomes_of(logits: np.ndarray, labels: np.ndarray) -> Outcomes:
    """One pass over the logits, in chunks."""
    parts = []
    for rows in chunks(*logits.shape):
        part, y = logits[rows], labels[rows]
        z = part.astype(np.float64)
        total = logsumexp(z, axis=1)
        surprised = total - np.take_along_axis(z, y[:, None], 1)[:, 0]
        confidence = np.exp(z.max(1) - total)
        parts.append(Outcomes(predicted(part), among_five(part, y), surprised, confidence))
    return pooled(parts)


def pooled(parts: list[Outcomes]) -> Outcomes:
    """Of several sets of images as one."""
    return Outcomes(*map(np.concatenate, zip(*(vars(p).values() for p in parts), strict=True)))


METRICS = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "top5": top5,
}


def summary(logits: np.ndarray, labels: np.ndarray, bins: np.ndarray) -> dict[str, float]:
    """The row that every table shows: the metrics, recall averaged over the classes of each bin
    (NaN where none of them has an image), NLL and calibration error."""
    return outcomes_of(logits, labels).summary(labels, bins)


def bin_names(bins: np.ndarray) -> list[str]:
    """The bins that occur, most frequent classes first."""
    order = ("many", "medium", "few", "head", "tail")
    return [name for name in order if name in set(bins)]
