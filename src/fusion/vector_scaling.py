"""Vector scaling (Guo et al., ICML 2017, "On Calibration of Modern Neural Networks", section 4.2),
held at temperature scaling.

    z'(n, c) = β (1 + v_c) z(n, c) + b_c,   β = 1 / T of temperature scaling
    v, b = argmin L + λ/(2N) Σ_c (m v_c² + b_c²)

L is that of likelihood.py, m the mean of (β z)²: both penalties weigh the change that is made to a
logit. λ counts as λ images, so that a class with two out-of-fold images cannot run away; a class
without any keeps b = 0 (nothing says what else it should be). The prediction may change with it.
"""

import numpy as np

from src.fusion.likelihood import Gradient, likelihood, minimised
from src.fusion.pool import Pool
from src.fusion.step import State, Step
from src.fusion.temperature import fitted_temperature, image_weights
from src.metrics import chunks


class VectorScaling(Step):
    """Params {"w": [K], "b": [K]}, z' = w ∘ z + b."""

    scored_by = "nll"

    def fit(self, states: list[State], labels: list[np.ndarray]):
        beta = 1 / fitted_temperature(states, labels)
        pools = [Pool([s.logits], y, "nll") for s, y in zip(states, labels, strict=True)]
        weights = [
            np.ones(len(y)) if w is None else w
            for y, w in zip(labels, image_weights(states, labels), strict=True)
        ]
        images, num = sum(map(len, labels)), pools[0].num_classes
        known = np.bincount(np.concatenate(labels), minlength=num) > 0
        m = beta**2 * sum(_squares(s.logits) for s in states) / (images * num)
        hold = self.section.shrinkage / images * np.repeat([m, 1.0], num)

        def objective(x: np.ndarray) -> Gradient:
            weight, bias = beta * (1 + x[None, :num]), x[num:]
            loss, gradient = 0.0, np.zeros(2 * num)
            for pool, s in zip(pools, weights, strict=True):
                n = len(pool.labels)
                part, by_weight, by_bias = likelihood(pool, np.ones(n, bool), s, weight, bias)
                loss += part * n / images
                gradient += np.append(beta * by_weight[0], by_bias * known) * n / images
            return loss + x @ (hold * x) / 2, gradient + hold * x

        x = minimised(objective, np.zeros(2 * num), self.section.iterations)
        w, b = beta * (1 + x[:num]), x[num:]
        return {"w": w.astype(np.float32), "b": b.astype(np.float32)}

    @staticmethod
    def apply(state: State, params):
        return state.logits * params["w"] + params["b"]


def _squares(logits: np.ndarray) -> float:
    """Σ z²."""
    parts = (logits[rows].astype(np.float64) for rows in chunks(*logits.shape))
    return sum(float(np.square(z).sum()) for z in parts)
