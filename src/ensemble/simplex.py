"""Weights of the members on the simplex, by likelihood on out-of-fold images.

    w = softmax(θ),  θ = argmin L(w) + λ/(2n) Σ_m θ_m²

    pool: log       z = Σ_m w_m log p_m      (a logarithmic pool: Genest & Zidek, Stat. Sci. 1986)
    pool: linear    z = log Σ_m w_m p_m      (a linear pool: stacking of van der Laan et al., 2007)

L is that of likelihood.py. θ = 0 is the mean; λ, as of λ images, holds it there where the images
say little. L-BFGS on θ, which needs no constraint.
"""

import numpy as np
from scipy.special import softmax

from src.ensemble.combiner import Members, Params, Pool, average, average_probabilities
from src.ensemble.likelihood import Gradient, image_weights, likelihood, minimised
from src.ensemble.mean import Mean

POOLS = {"log": average, "linear": average_probabilities}


class Simplex(Mean):
    """Params {"shares": weight by member, "pool": name}."""

    def fit(self, pool: Pool, rows: np.ndarray) -> Params:
        fit = _linear if self.section.pool == "linear" else grouped_weights
        shares = fit(pool, rows, np.zeros(pool.num_classes, int), self.section)[:, 0]
        return {"shares": shares.tolist(), "pool": self.section.pool}

    @staticmethod
    def combine(members: Members, params: Params) -> np.ndarray:
        return POOLS[params["pool"]](members, params["shares"])


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
        return _shrunk(loss, theta, w * (by_w - (w * by_w).sum(0)), section.shrinkage / len(s))

    found = minimised(objective, np.zeros(members * count), section.iterations)
    return softmax(found.reshape(members, count), axis=0)


def _linear(pool: Pool, rows: np.ndarray, groups: np.ndarray, section) -> np.ndarray:
    """w [M, 1] of a linear pool."""
    s, labels = image_weights(pool, rows, section.balanced), pool.labels[rows]
    at = np.flatnonzero(rows)
    p = np.exp([m[at, labels].astype(np.float64) for m in pool.members])  # [M, n]

    def objective(theta: np.ndarray) -> Gradient:
        w = softmax(theta)
        mixed = np.maximum(w @ p, 1e-300)
        by_w = -(p / mixed) @ s / len(s)
        return _shrunk(
            -s @ np.log(mixed) / len(s), theta, w * (by_w - w @ by_w), section.shrinkage / len(s)
        )

    return softmax(minimised(objective, np.zeros(len(p)), section.iterations))[:, None]


def _shrunk(loss: float, theta: np.ndarray, gradient: np.ndarray, strength: float) -> Gradient:
    """With λ/(2n) Σθ² added; strength: λ/n"""
    whole = gradient + strength * theta
    return loss + strength / 2 * float(np.square(theta).sum()), whole.ravel()


def _size(groups: np.ndarray) -> int:
    return int(groups.max()) + 1
