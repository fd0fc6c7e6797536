"""Temperature scaling (Guo et al., ICML 2017, "On Calibration of Modern Neural Networks").

z / T with the T that minimises the negative log-likelihood. No argmax changes, but probabilities
become honest, so that the log-probabilities of several experiments can be averaged.
"""

import numpy as np
from scipy.optimize import minimize_scalar

from src.fusion.step import State, Step
from src.metrics import chunks

LOG_T = (np.log(1e-3), np.log(1e3))


class Temperature(Step):
    scored_by = "nll"

    def fit(self, states: list[State], labels: list[np.ndarray]):
        return {"T": fitted_temperature(states, labels)}

    @staticmethod
    def apply(state: State, params):
        return state.logits / params["T"]


def fitted_temperature(states: list[State], labels: list[np.ndarray]) -> float:
    """T, by bounded scalar minimisation over log T, in which the likelihood has one minimum."""
    images = sum(map(len, labels))

    def loss(log_t: float) -> float:
        beta = np.float32(np.exp(-log_t))
        total = sum(sum_nll(s.logits, y, beta) for s, y in zip(states, labels, strict=True))
        return total / images

    found = minimize_scalar(loss, bounds=LOG_T, method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


def sum_nll(
    logits: np.ndarray, labels: np.ndarray, beta: np.float32, which: np.ndarray | None = None
) -> float:
    """Negative log-likelihood of softmax(βz), the sum over images, or those of a mask `which` [N].
    float32 exponentials: the sums of K terms are exact enough, and fast."""
    total = 0.0
    for rows in chunks(*logits.shape):
        z, y = logits[rows], labels[rows, None]
        if which is not None:
            z, y = z[which[rows]], y[which[rows]]
        z = (z - z.max(1, keepdims=True)) * beta
        true = np.take_along_axis(z, y, 1)[:, 0]
        total += float((np.log(np.exp(z).sum(1, dtype=np.float64)) - true).sum())
    return total
