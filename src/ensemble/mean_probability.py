"""The mean of the members' probabilities, a linear opinion pool (Stone, Ann. Math. Stat. 1961):

    p(c) = 1/M Σ_m p_m(c)

Where the mean of log-probabilities lets one member veto a class, here one that is sure carries it.
"""

from src.ensemble.combiner import Members, Params
from src.ensemble.mean import Mean
from src.fusion.pool import average_probabilities


class MeanProbability(Mean):
    """Nothing to fit; kept where it is better than the mean of log-probabilities."""

    @staticmethod
    def combine(members: Members, params: Params):
        return average_probabilities(members, params["shares"])
