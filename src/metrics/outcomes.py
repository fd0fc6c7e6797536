"""What a score needs to know of each image: one small fact, so that its logits can go."""

from collections.abc import Iterator

import numpy as np
from scipy.special import logsumexp

CHUNK = 2**22  # logits that are worked on at once


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices that cover 0 … rows-1, each of at most about CHUNK numbers."""
    step = max(1, CHUNK // max(columns, 1))
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


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
