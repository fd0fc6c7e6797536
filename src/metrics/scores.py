"""Scores of outcomes and of logits, and the tables of their names."""

from collections.abc import Callable

import numpy as np

from src.metrics.outcomes import among_five, predicted, surprise

LOWER_IS_BETTER = ("nll", "ece")

# drawn: [N] how often each image counts, as in a bootstrap; None: each once


def _right(outcome, labels, num_classes, drawn):
    hits = outcome == labels
    return np.bincount(labels, hits if drawn is None else hits * drawn, num_classes)


def recalls_of(outcome, labels, num_classes, drawn=None):
    total = np.bincount(labels, drawn, num_classes)
    right = _right(outcome, labels, num_classes, drawn)
    return np.divide(right, total, out=np.full(num_classes, np.nan), where=total > 0)


def _accuracy(outcome, labels, num_classes, drawn=None):
    return _mean(outcome == labels, labels, num_classes, drawn)


def _balanced_accuracy(outcome, labels, num_classes, drawn=None):
    return float(np.nanmean(recalls_of(outcome, labels, num_classes, drawn)))


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


# ---- scores of logits --------------------------------------------------------------------------


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose largest logit is the true class."""
    return _accuracy(predicted(logits), labels, logits.shape[1])


def recalls(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of each class's images that are right, [K]; NaN for classes without an image."""
    return recalls_of(predicted(logits), labels, logits.shape[1])


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


METRICS = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "top5": top5,
}
