"""Stacking (Wolpert, Neural Networks 1992): a multinomial regression on the members' opinions.

    z(n, c) = Σ_m w_m log p_m(n, c) + b(c)
    w, b = argmin L + λ_w/(2n) Σ_m (w_m − 1/M)² + λ_b/(2n) Σ_c b(c)²

A weight per member, shared by all classes, and a bias per class: M + K numbers, where a full
regression has M · K², so that K = 8,142 is feasible. Weights may add up to more or less than 1
(a temperature) and be negative. Both are held at the mean as if by λ images; the bias of a class
without an image is 0, there is nothing to say what else it should be.
"""

import numpy as np

from src.ensemble.combiner import Combiner, Members, Params, Pool
from src.fusion.likelihood import Gradient, image_weights, likelihood, minimised
from src.fusion.pool import average


class Stacking(Combiner):
    """Params {"weight": by member, "bias": [K]}."""

    def fit(self, pool: Pool, rows: np.ndarray) -> Params:
        members, num, how = len(pool.members), pool.num_classes, self.section
        s = image_weights(pool, rows, how.balanced)
        known = np.bincount(pool.labels[rows], minlength=num) > 0
        centre = np.append(np.full(members, 1 / members), np.zeros(num))
        hold = np.append(np.full(members, how.shrinkage), np.full(num, how.bias_shrinkage))

        def objective(x: np.ndarray) -> Gradient:
            w, bias = x[:members], x[members:]
            shared = np.broadcast_to(w[:, None], (members, num))
            loss, by_weight, by_bias = likelihood(pool, rows, s, shared, bias)
            away = hold * (x - centre) / len(s)
            gradient = np.append(by_weight.sum(1), by_bias * known) + away
            return loss + away @ (x - centre) / 2, gradient

        x = minimised(objective, centre, how.iterations)
        return {"weight": x[:members].tolist(), "bias": x[members:].astype(np.float32)}

    @staticmethod
    def combine(members: Members, params: Params) -> np.ndarray:
        return average(members, params["weight"]) + params["bias"]
