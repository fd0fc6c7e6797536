"""The likelihood that the fitted combiners share, and its gradient.

    z(n, c) = Σ_m W(m, c) l_m(n, c) + b(c)          l_m: log-probabilities of member m
    L = 1/n Σ_n s_n [ log Σ_c exp z(n, c) − z(n, y_n) ]

    ∂L/∂W(m, c) = 1/n Σ_n R(n, c) l_m(n, c),  ∂L/∂b(c) = 1/n Σ_n R(n, c),
    R(n, c) = s_n [ softmax_c z(n) − 1(c = y_n) ]

s_n is 1, or where classes are to count equally n / (classes present · images of y_n). A linear
pool of probabilities needs the true class's alone: −log Σ_m w_m p_m(n, y_n).
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from src.ensemble.combiner import Pool
from src.metrics import chunks

BY_CLASS = ("balanced_accuracy", "macro_f1")  # metrics that average over classes
Gradient = tuple[float, np.ndarray]


def image_weights(pool: Pool, rows: np.ndarray, balanced: bool | None) -> np.ndarray:
    """s of the images `rows` (a mask), [n], mean 1. balanced: classes count equally; None: if the
    metric averages over them"""
    labels = pool.labels[rows]
    if not (pool.metric in BY_CLASS if balanced is None else balanced):
        return np.ones(len(labels))
    counts = np.bincount(labels, minlength=pool.num_classes)
    return len(labels) / (np.count_nonzero(counts) * counts[labels])


def likelihood(
    pool: Pool, rows: np.ndarray, s: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """L, ∂L/∂W [M, K] and ∂L/∂b [K] on the images `rows`; weight: W [M, K] · bias: b [K]"""
    at = np.flatnonzero(rows)
    loss, by_weight, by_bias = 0.0, np.zeros(weight.shape), np.zeros(bias.shape)
    for part in chunks(len(at), pool.num_classes):
        images, labels = at[part], pool.labels[at[part], None]
        z = bias + sum(w * m[images] for w, m in zip(weight, pool.members, strict=True))  # [n, K]
        total = logsumexp(z, axis=1, keepdims=True)
        loss += s[part] @ (total - np.take_along_axis(z, labels, 1))[:, 0]
        residual = np.exp(z - total)
        np.put_along_axis(residual, labels, np.take_along_axis(residual, labels, 1) - 1, 1)
        residual *= s[part, None]
        by_bias += residual.sum(0)
        for m, member in enumerate(pool.members):
            by_weight[m] += np.einsum("nk,nk->k", residual, member[images])
    n = len(at)
    return loss / n, by_weight / n, by_bias / n


def minimised(objective: Callable[[np.ndarray], Gradient], start: np.ndarray, iterations: int):
    """Where an objective with its gradient is least, by L-BFGS."""
    options = {"maxiter": iterations, "ftol": 1e-10, "gtol": 1e-7}
    return minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
