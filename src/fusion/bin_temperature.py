"""A temperature per frequency bin (after Islam et al., arXiv 2109.05263, "Class-distribution-aware
calibration for long-tailed visual recognition", where it is a function of the class frequency).

    z / T_g,   g: the frequency bin of the class with the largest logit
    T_g = argmin Σ_{n in g} −log softmax(z_n / T_g)[y_n] + λ/2 (log T_g − log T)²

What a network calls rare it is usually too sure of, or not sure enough, in another measure than
what it calls frequent. No argmax changes. T is that of temperature scaling, where bins with few
predictions stay: λ nats for a T_g that is e times T.
"""

import numpy as np
from scipy.optimize import minimize_scalar

from src.fusion.step import State, Step
from src.fusion.temperature import LOG_T, fitted_temperature, image_weights, sum_nll
from src.metrics import chunks


class BinTemperature(Step):
    """Params {"T": by bin, "bins": the bin of each class, [K]}."""

    scored_by = "nll"

    def refuses(self, state: State):
        if state.bins is None:
            return "needs the classes' bins, none are given"
        if state.bins.max() == 0:
            return "all classes are in one bin; use temperature"
        return None

    def fit(self, states: list[State], labels: list[np.ndarray]):
        common, bins = np.log(fitted_temperature(states, labels)), states[0].bins
        found = [_groups(s.logits, bins) for s in states]  # [n] each
        weights = [1.0 if w is None else w for w in image_weights(states, labels)]

        def loss(log_t: float, g: int) -> float:
            beta = np.float32(np.exp(-log_t))
            parts = zip(states, labels, found, weights, strict=True)
            total = sum(sum_nll(s.logits, y, beta, w * (at == g)) for s, y, at, w in parts)
            return total + self.section.shrinkage / 2 * (log_t - common) ** 2

        options = {"bounds": LOG_T, "method": "bounded", "options": {"xatol": 1e-3}}
        best = [minimize_scalar(loss, args=(g,), **options).x for g in range(bins.max() + 1)]
        return {"T": np.exp(best).tolist(), "bins": bins.astype(np.int32)}

    @staticmethod
    def apply(state: State, params):
        groups = params["bins"][state.logits.argmax(1)]  # [N]
        return state.logits / np.asarray(params["T"], state.logits.dtype)[groups, None]


def _groups(logits: np.ndarray, bins: np.ndarray) -> np.ndarray:
    parts = [logits[rows].argmax(1) for rows in chunks(*logits.shape)]
    return bins[np.concatenate(parts)]
