"""What a score needs to know of each image: one small fact, so that its logits can go."""

from collections.abc import Iterator

import numpy as np
from scipy.special import logsumexp, softmax

CHUNK = 2**20  # logits that are worked on at once
CLIP = 1e-15  # Kaggle keeps the probabilities of log-loss this far from 0 and 1


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices that cover 0 … rows-1, each of at most about CHUNK numbers."""
    step = max(1, CHUNK // max(columns, 1))
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


def predicted(logits: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """The label with the largest logit, the smaller label of equals, [N]."""
    return logits.argmax(1)


def rank(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Place of the true class, 1 … K, [N]; ties count against it."""
    true = np.take_along_axis(logits, labels[:, None], 1)
    return (logits >= true).sum(1)


def among_five(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether fewer than five classes are above the true one, [N]; ties count against it."""
    return rank(logits, labels) <= 5


def surprise(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of the true class in nats, float64 [N]."""
    out = np.empty(len(logits))
    for rows in chunks(*logits.shape):
        z = logits[rows].astype(np.float64)
        out[rows] = logsumexp(z, axis=1) - np.take_along_axis(z, labels[rows, None], 1)[:, 0]
    return out


def clipped_surprise(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same as Kaggle's log-loss has it: of a probability between 1e-15 and 1 - 1e-15."""
    return np.clip(surprise(logits, labels), -np.log1p(-CLIP), -np.log(CLIP))


def probabilities(logits: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Softmax, float32 [N, K], made in chunks: for metrics that need every image to score any."""
    out = np.empty(logits.shape, np.float32)
    for rows in chunks(*logits.shape):
        out[rows] = softmax(logits[rows].astype(np.float64), axis=1)
    return out
