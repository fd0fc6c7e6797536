"""Weights of the members on the simplex, by likelihood on out-of-fold images.

    w = softmax(θ),  θ = argmin L(w) + λ/(2n) Σ_m θ_m²

    pool: log       z = Σ_m w_m log p_m      (a logarithmic pool: Genest & Zidek, Stat. Sci. 1986)
    pool: linear    z = log Σ_m w_m p_m      (a linear pool: stacking of van der Laan et al., 2007)

L is that of likelihood.py. θ = 0 is the mean; λ, as of λ images, holds it there where the images
say little. L-BFGS on θ, which needs no constraint.
"""

import numpy as np
from scipy.special import softmax

from src.ensemble.combiner import Params
from src.ensemble.mean import Mean
from src.fusion.likelihood import Gradient, grouped_weights, image_weights, minimised, shrunk
from src.fusion.pool import Members, Pool, average, average_probabilities

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


def _linear(pool: Pool, rows: np.ndarray, groups: np.ndarray, section) -> np.ndarray:
    """w [M, 1] of a linear pool."""
    s, labels = image_weights(pool, rows, section.balanced), pool.labels[rows]
    at = np.flatnonzero(rows)
    p = np.exp([m[at, labels].astype(np.float64) for m in pool.members])  # [M, n]

    def objective(theta: np.ndarray) -> Gradient:
        w = softmax(theta)
        mixed = np.maximum(w @ p, 1e-300)
        by_w = -(p / mixed) @ s / len(s)
        return shrunk(
            -s @ np.log(mixed) / len(s), theta, w * (by_w - w @ by_w), section.shrinkage / len(s)
        )

    return softmax(minimised(objective, np.zeros(len(p)), section.iterations))[:, None]
