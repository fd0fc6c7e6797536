"""Scores of outcomes, and of logits.

A score takes outcomes [N] of images, their labels [N], K, and `drawn`: [N] how often each image
counts, as in a bootstrap of any size; None: each once.
"""

import numpy as np

from src.metrics.outcomes import among_five, predicted, surprise


def mean(outcome, labels, num_classes, drawn=None):
    return float(np.mean(outcome) if drawn is None else outcome @ drawn / drawn.sum())


def accuracy_of(outcome, labels, num_classes, drawn=None):
    return mean(outcome == labels, labels, num_classes, drawn)


def _right(outcome, labels, num_classes, drawn):
    hits = outcome == labels
    return np.bincount(labels, hits if drawn is None else hits * drawn, num_classes)


def recalls_of(outcome, labels, num_classes, drawn=None):
    total = np.bincount(labels, drawn, num_classes)
    right = _right(outcome, labels, num_classes, drawn)
    return np.divide(right, total, out=np.full(num_classes, np.nan), where=total > 0)


def balanced_accuracy_of(outcome, labels, num_classes, drawn=None):
    return float(np.nanmean(recalls_of(outcome, labels, num_classes, drawn)))


def f_of_classes(outcome, labels, num_classes, drawn=None, beta=1.0):
    """F-beta of each class, (1 + β²) TP / (β² images + claimed), [K]; 0 where neither is any."""
    support = np.bincount(labels, drawn, num_classes)
    claimed = np.bincount(outcome, drawn, num_classes)
    right = _right(outcome, labels, num_classes, drawn)
    below = beta**2 * support + claimed
    return np.divide((1 + beta**2) * right, below, out=np.zeros(num_classes), where=below > 0)


def macro_f1_of(outcome, labels, num_classes, drawn=None):
    return float(np.mean(f_of_classes(outcome, labels, num_classes, drawn)))


def weighted_f1_of(outcome, labels, num_classes, drawn=None):
    """F1 per class, averaged with the images of each as weights."""
    support = np.bincount(labels, drawn, num_classes)
    return float(support @ f_of_classes(outcome, labels, num_classes, drawn) / support.sum())


def kappa_of(outcome, labels, num_classes, drawn=None):
    """Quadratic weighted kappa, 1 - Σ O_ab (a - b)² / Σ E_ab (a - b)² (Cohen, 1968).

    E is the product of the margins over N, so that its sum needs moments only: no table [K, K].
    0 where chance alone agrees fully: there is nothing to agree beyond it.
    """
    w = np.ones(len(labels)) if drawn is None else drawn
    a, b, n = labels.astype(float), outcome.astype(float), w.sum()
    apart = w @ (a - b) ** 2
    by_chance = w @ a**2 + w @ b**2 - 2 * (w @ a) * (w @ b) / n
    return float(1 - apart / by_chance) if by_chance > 1e-12 * n else 0.0


# ---- scores of logits --------------------------------------------------------------------------


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose largest logit is the true class."""
    return accuracy_of(predicted(logits), labels, logits.shape[1])


def recalls(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of each class's images that are right, [K]; NaN for classes without an image."""
    return recalls_of(predicted(logits), labels, logits.shape[1])


def balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean recall over the classes that have an image."""
    return balanced_accuracy_of(predicted(logits), labels, logits.shape[1])


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """F1 per class, averaged over all K classes; a class neither present nor predicted counts 0."""
    return macro_f1_of(predicted(logits), labels, logits.shape[1])


def top5(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of images with fewer than five classes above the true one; ties count against it."""
    return float(np.mean(among_five(logits, labels)))


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the true class, in nats."""
    return float(np.mean(surprise(logits, labels)))


METRICS = {  # what every table shows, whatever the competition's metric is
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "top5": top5,
}
