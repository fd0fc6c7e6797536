"""The mean of the ranks that the members give to the classes of an image (Borda, 1781).

    r_m(c) = classes that member m puts above c, ties sharing their mean rank; 0 is the best
    p(c) ∝ 1 / (1 + r̄(c)),  r̄ = 1/M Σ_m r_m

How sure a member is does not count, so that one on another scale (distances, an overconfident
network) cannot outvote the rest; nor are the probabilities worth much. Mean ranks lie 1/(2M) apart
or are equal; equal ones are told apart by the mean probability, which is scaled below that.
"""

import numpy as np

from src.ensemble.combiner import Members, Params
from src.ensemble.mean import Mean


class RankMean(Mean):
    """Nothing to fit; kept where it is better than the mean of log-probabilities."""

    @staticmethod
    def combine(members: Members, params: Params) -> np.ndarray:
        from scipy.stats import rankdata  # slow to import

        count = len(members)
        mean = sum(rankdata(-m, axis=1) - 1 for m in members) / count  # [N, K]
        sure = sum(np.exp(m.astype(np.float64)) for m in members) / count
        return -np.log1p(mean + (1 - sure) / (2 * count)).astype(np.float32)
