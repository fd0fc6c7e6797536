"""Temperature scaling (Guo et al., ICML 2017, "On Calibration of Modern Neural Networks").

z / T with the T that minimises the negative log-likelihood. No argmax changes, but probabilities
become honest, so that the log-probabilities of several experiments can be averaged.
"""

import numpy as np
from scipy.optimize import minimize_scalar

from src.fusion.step import State, Step
from src.metrics import chunks, importance

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
    images, weights = sum(map(len, labels)), image_weights(states, labels)

    def loss(log_t: float) -> float:
        beta = np.float32(np.exp(-log_t))
        parts = zip(states, labels, weights, strict=True)
        return sum(sum_nll(s.logits, y, beta, w) for s, y, w in parts) / images

    found = minimize_scalar(loss, bounds=LOG_T, method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


def image_weights(states: list[State], labels: list[np.ndarray]) -> list[np.ndarray | None]:
    """Of the images of each fold [n], such that classes are as often as the target prior says."""
    found = importance(np.concatenate(labels), states[0].target)
    if found is None:
        return [None] * len(labels)
    return np.split(found, np.cumsum([len(y) for y in labels])[:-1])


def sum_nll(
    logits: np.ndarray, labels: np.ndarray, beta: np.float32, weights: np.ndarray | None = None
) -> float:
    """Negative log-likelihood of softmax(βz), the sum over images, each `weights` [N] times; where
    that is 0 they take no time. float32 exponentials: sums of K terms are exact enough, and fast.
    """
    total = 0.0
    for rows in chunks(*logits.shape):
        z, y, w = logits[rows], labels[rows, None], 1.0
        if weights is not None:
            counted = weights[rows] > 0
            z, y, w = z[counted], y[counted], weights[rows][counted]
        z = (z - z.max(1, keepdims=True)) * beta
        true = np.take_along_axis(z, y, 1)[:, 0]
        total += float((w * (np.log(np.exp(z).sum(1, dtype=np.float64)) - true)).sum())
    return total
