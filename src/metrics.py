"""Scores of logits, always with an explicit set of K classes. numpy only.

logits: [N, K] · labels: [N] in 0 … K-1 · bins: [K] names such as many / medium / few

Each score is a function of one small fact per image, its `outcome`: the predicted label, whether
the true class is among the top five, or the negative log-likelihood. A search over many candidate
logits keeps their outcomes, [N], and never the logits. Rows are read in chunks, so that no score
needs memory of the size of the logits.
"""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import logsumexp

from src.errors import UserError

BINS = {"thresholds": ("many", "medium", "few"), "halves": ("head", "tail")}
BINS["terciles"] = BINS["thresholds"]
CHUNK = 2**22  # logits that are worked on at once
DRAWS = 200  # of the bootstrap


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


def _recalls(outcome, labels, num_classes):
    total = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[outcome == labels], minlength=num_classes)
    return np.divide(right, total, out=np.full(num_classes, np.nan), where=total > 0)


def _accuracy(outcome, labels, num_classes):
    return float(np.mean(outcome == labels))


def _balanced_accuracy(outcome, labels, num_classes):
    return float(np.nanmean(_recalls(outcome, labels, num_classes)))


def _macro_f1(outcome, labels, num_classes):
    support = np.bincount(labels, minlength=num_classes)
    claimed = np.bincount(outcome, minlength=num_classes)
    right = np.bincount(labels[outcome == labels], minlength=num_classes)
    return float(np.mean(2 * right / np.maximum(support + claimed, 1)))


def _mean(outcome, labels, num_classes):
    return float(np.mean(outcome))


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


def paired_gain(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, num_classes: int, metric: str
) -> tuple[float, float]:
    """Score of outcomes `after` less that of `before`, and the standard error of the difference:
    bootstrap over images, both scored on the same draws, always the same ones."""

    def difference(rows):
        a, b = (SCORES[metric](x[rows], labels[rows], num_classes) for x in (after, before))
        return a - b

    rng = np.random.default_rng(0)
    draws = [difference(rng.integers(len(labels), size=len(labels))) for _ in range(DRAWS)]
    return difference(slice(None)), float(np.std(draws, ddof=1))


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
    confidence = np.empty(len(logits))
    for rows in chunks(*logits.shape):
        z = logits[rows].astype(np.float64)
        confidence[rows] = np.exp(z.max(1) - logsumexp(z, axis=1))
    right = predicted(logits) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    size = np.bincount(which, minlength=bins)
    empty = np.full(bins, np.nan)
    mean = np.divide(np.bincount(which, confidence, bins), size, out=empty.copy(), where=size > 0)
    share = np.divide(np.bincount(which, right, bins), size, out=empty.copy(), where=size > 0)
    return float(np.nansum(size * np.abs(mean - share)) / size.sum()), mean, share, size


METRICS = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "top5": top5,
}


def summary(logits: np.ndarray, labels: np.ndarray, bins: np.ndarray) -> dict[str, float]:
    """The row that every table shows: the metrics, recall averaged over the classes of each bin
    (NaN where none of them has an image), NLL and calibration error."""
    row = {name: metric(logits, labels) for name, metric in METRICS.items()}
    recall = recalls(logits, labels)
    for name in bin_names(bins):
        inside = recall[bins == name]
        known = inside[~np.isnan(inside)]
        row[name] = float(known.mean()) if len(known) else float("nan")
    return row | {"nll": nll(logits, labels), "ece": calibration(logits, labels)[0]}


def bin_names(bins: np.ndarray) -> list[str]:
    """The bins that occur, most frequent classes first."""
    order = ("many", "medium", "few", "head", "tail")
    return [name for name in order if name in set(bins)]
