"""The mean of the members' log-probabilities: nothing to fit, and what others must beat."""

from src.ensemble.combiner import Combiner, Members, Params, Pool
from src.fusion.pool import average


class Mean(Combiner):
    """Also the base of combiners that are a weighted mean: params {"shares": weight by member}."""

    def fit(self, pool: Pool, rows) -> Params:
        return equal(len(pool.members))

    @staticmethod
    def combine(members: Members, params: Params):
        return average(members, params["shares"])

    @staticmethod
    def shares(params: Params) -> list[float]:
        return params["shares"]


def equal(members: int) -> Params:
    return {"shares": [1 / members] * members}
