"""A toy combiner: the member that scores best on the images that it may look at."""

import numpy as np

from src.ensemble.combiner import Combiner


class BestMember(Combiner):
    def fit(self, pool, rows):
        outcomes = (pool.outcome(lambda m, i=i: m[i]) for i in range(len(pool.members)))
        return {"member": int(np.argmax([pool.score(outcome, rows) for outcome in outcomes]))}

    @staticmethod
    def combine(members, params):
        return members[params["member"]]
