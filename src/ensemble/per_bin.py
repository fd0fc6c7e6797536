"""A weight for every member and frequency bin: one member may know the rare classes best.

    z(n, c) = Σ_m w_m,b(c) log p_m(n, c),   b(c): the bin of class c

The bin is that of the class whose logit is made, not of the one that is predicted: which class is
predicted depends on the weights, and a weight that jumps with the prediction would make z jump,
too. Fitted as in simplex.py, a simplex for each bin, with the same shrinkage to the mean.
"""

import numpy as np

from src.ensemble.combiner import Combiner, Members, Params, Pool
from src.fusion.likelihood import grouped_weights
from src.metrics import need_bins


class PerBin(Combiner):
    """Params {"by_bin": a list of the members' weights for each bin, most frequent first,
    "weight": [M, K]}."""

    def fit(self, pool: Pool, rows: np.ndarray) -> Params:
        need_bins(
            1 if pool.bins is None else len(set(pool.bins.tolist())), "ensemble.combiner per_bin"
        )
        w = grouped_weights(pool, rows, pool.bins, self.section)  # [M, bins]
        return {"by_bin": w.T.tolist(), "weight": w[:, pool.bins].astype(np.float32)}

    @staticmethod
    def combine(members: Members, params: Params) -> np.ndarray:
        return sum(w * m for w, m in zip(params["weight"], members, strict=True))
