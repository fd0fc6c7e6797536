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
from scipy.special import softmax

from src.fusion.pool import Pool
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
        z -= z.max(1, keepdims=True)
        true = np.take_along_axis(z, labels, 1)
        total = np.exp(z, out=z).sum(1, keepdims=True)
        loss += s[part] @ (np.log(total) - true)[:, 0]
        z *= s[part, None] / total
        np.put_along_axis(z, labels, np.take_along_axis(z, labels, 1) - s[part, None], 1)
        residual = z  # in place throughout: memory is what takes the time
        by_bias += residual.sum(0)
        for m, member in enumerate(pool.members):
            by_weight[m] += np.einsum("nk,nk->k", residual, member[images])
    n = len(at)
    return loss / n, by_weight / n, by_bias / n


def minimised(objective: Callable[[np.ndarray], Gradient], start: np.ndarray, iterations: int):
    """Where an objective with its gradient is least, by L-BFGS."""
    options = {"maxiter": iterations, "ftol": 1e-10, "gtol": 1e-7}
    return minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x


def grouped_weights(pool: Pool, rows: np.ndarray, groups: np.ndarray, section) -> np.ndarray:
    """w [M, G] of a logarithmic pool, a simplex for each group of classes.

    groups: [K], the group 0 … G-1 of each class · section: with balanced, shrinkage, iterations
    """
    s, members, count = (
        image_weights(pool, rows, section.balanced),
        len(pool.members),
        _size(groups),
    )
    bias = np.zeros(pool.num_classes)

    def objective(flat: np.ndarray) -> Gradient:
        theta = flat.reshape(members, count)
        w = softmax(theta, axis=0)
        loss, by_class, _ = likelihood(pool, rows, s, w[:, groups], bias)
        by_w = np.stack([np.bincount(groups, row, count) for row in by_class])  # [M, G]
        return shrunk(loss, theta, w * (by_w - (w * by_w).sum(0)), section.shrinkage / len(s))

    found = minimised(objective, np.zeros(members * count), section.iterations)
    return softmax(found.reshape(members, count), axis=0)


def shrunk(loss: float, theta: np.ndarray, gradient: np.ndarray, strength: float) -> Gradient:
    """With λ/(2n) Σθ² added; strength: λ/n"""
    whole = gradient + strength * theta
    return loss + strength / 2 * float(np.square(theta).sum()), whole.ravel()


def _size(groups: np.ndarray) -> int:
    return int(groups.max()) + 1
