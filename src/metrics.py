"""Scores of logits, always with an explicit set of K classes. numpy and scikit-learn only.

logits: [N, K] · labels: [N] in 0 … K-1 · bins: [K] names such as many / medium / few
"""

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.metrics import f1_score

BINS = {"thresholds": ("many", "medium", "few"), "halves": ("head", "tail")}
BINS["terciles"] = BINS["thresholds"]


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose largest logit is the true class."""
    return float(np.mean(logits.argmax(1) == labels))


def recalls(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of each class's images that are right, [K]; NaN for classes without an image."""
    num_classes = logits.shape[1]
    total = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[logits.argmax(1) == labels], minlength=num_classes)
    return np.divide(right, total, out=np.full(num_classes, np.nan), where=total > 0)


def balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean recall over the classes that have an image."""
    return float(np.nanmean(recalls(logits, labels)))


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """F1 per class, averaged over all K classes; a class neither present nor predicted counts 0."""
    every = np.arange(logits.shape[1])
    return float(f1_score(labels, logits.argmax(1), labels=every, average="macro", zero_division=0))


def top5(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of images with fewer than five classes above the true one; ties count against it."""
    true = np.take_along_axis(logits, labels[:, None], 1)
    above = (logits >= true).sum(1) - 1
    return float(np.mean(above < 5))


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the true class, in nats."""
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    return float(-np.take_along_axis(log_p, labels[:, None], 1).mean())


def calibration(
    logits: np.ndarray, labels: np.ndarray, bins: int = 15
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Expected calibration error (Guo et al. 2017) and the reliability diagram behind it.

    Returns ece, and per confidence bin: mean confidence, accuracy (NaN where empty), images.
    """
    probability = softmax(logits.astype(np.float64), axis=1)
    confidence = probability.max(1)
    right = logits.argmax(1) == labels
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
