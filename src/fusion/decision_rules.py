"""Rules by which probabilities become decisions. One is a `fit` and the `scores` it leads to."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from src.config.metric import parse
from src.metrics import chunks, metric_of

Params = dict  # numbers and arrays
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
STRETCHES = np.geomspace(1, 4, 29)
ROUNDS = 12


@dataclass(frozen=True)
class Rule:
    """fit: (probabilities [n, K], labels [n], metric, weights of the images [n]) → parameters ·
    scores: (log-probabilities [n, K], parameters) → [n, K], of which the largest is the decision"""

    fit: Callable[[np.ndarray, np.ndarray, str, np.ndarray], Params]
    scores: Callable[[np.ndarray, Params], np.ndarray]


# ---- F1 and F-beta -----------------------------------------------------------------------------


def fit_utility(p: np.ndarray, labels: np.ndarray, metric: str, weights: np.ndarray) -> Params:
    """Expected utility for Σ_c u_c F_c (Koyejo et al., NeurIPS 2014 and 2015; Narasimhan et al.,
    ICML 2015).

    F_c = (1 + β²) TP_c / (β² S_c + C_c) with S_c images and C_c claims. One more claim of class c
    changes Σ u F by u_c / (β² S_c + C_c) · ((1 + β²) p_c − F_c), so that is what decides. S, C and
    F are expected ones, of the probabilities alone, and found by repeating the rule on what it
    decided: a class with two images gives no labels to fit to. Labels choose the strength λ alone:

        w_c^λ (p_c − λ F_c / (1 + β²)),    w_c = u_c / (β² S_c + C_c)
    """
    b2, num_classes = parse(metric).beta ** 2, p.shape[1]
    images = weights.astype(p.dtype) @ p  # S, [K]; of one type, or p is copied
    worth = images if metric == "weighted_f1" else np.ones(num_classes)
    params = {"weight": np.ones(num_classes), "offset": np.zeros(num_classes), "strength": 1.0}
    best, best_value, held = params, -np.inf, None
    for _ in range(ROUNDS):
        decided = _decided(p, params)
        claimed = np.bincount(decided, weights, num_classes)
        right = np.bincount(decided, weights * p[np.arange(len(p)), decided], num_classes)  # TP
        below = b2 * images + np.maximum(claimed, 1)
        value = float(worth @ ((1 + b2) * right / below))
        if value > best_value:
            best, best_value = params, value
        found = np.stack([claimed, right])
        if held is not None and np.array_equal(found, held):
            break
        held = found if held is None else (held + found) / 2  # else it may go to and fro
        below = b2 * images + np.maximum(held[0], 1)
        weight = worth / below
        params = params | {"weight": weight / weight.mean(), "offset": held[1] / below}
    options = [best | {"strength": strength} for strength in STRENGTHS]
    of = metric_of(metric)
    scores = [of.score(_decided(p, option), labels, num_classes, weights) for option in options]
    return options[int(np.argmax(scores))]


def utility(p: np.ndarray, params: Params) -> np.ndarray:
    strength = params["strength"]
    weight, offset = params["weight"] ** strength, strength * params["offset"]
    return weight.astype(p.dtype) * (p - offset.astype(p.dtype))


def _decided(p: np.ndarray, params: Params) -> np.ndarray:
    """[n], in chunks."""
    out = np.empty(len(p), np.int64)
    for rows in chunks(*p.shape):
        out[rows] = utility(p[rows], params).argmax(1)
    return out


# ---- quadratic weighted kappa ------------------------------------------------------------------


def fit_ordinal(p: np.ndarray, labels: np.ndarray, metric: str, weights: np.ndarray) -> Params:
    """Expected cost for kappa: argmin_j Σ_k p_k (j − k)² is the place next to the mean μ = Σ k p_k.

    That is least square error; kappa, 2 cov / (var + var' + Δ²), also pays decisions that vary as
    labels do, while means vary less. So μ is stretched about its average first, by the factor from
    1 (none) to 4 whose kappa is highest: the thresholds between places move together.
    """
    places = np.asarray(parse(metric).order or range(p.shape[1]), float)
    mean = p @ places.astype(p.dtype)  # μ, [n]
    params = {"places": places, "centre": float(weights @ mean / weights.sum())}
    options = [params | {"stretch": float(stretch)} for stretch in STRETCHES]
    of = metric_of(metric)
    scores = []
    for option in options:
        parts = [_near(mean[rows], option).argmax(1) for rows in chunks(*p.shape)]
        scores.append(of.score(np.concatenate(parts), labels, p.shape[1], weights))
    return options[int(np.argmax(scores))]


def ordinal(log_p: np.ndarray, params: Params) -> np.ndarray:
    return _near(np.exp(log_p) @ params["places"], params)


def _near(mean: np.ndarray, params: Params) -> np.ndarray:
    """Minus the squared distance of the stretched mean [n] from every place, [n, K]."""
    stretched = params["centre"] + params["stretch"] * (mean - params["centre"])
    return -np.square(stretched[:, None] - params["places"])


# ---- the table ---------------------------------------------------------------------------------

RULES: dict[str, Rule] = {
    "expected_utility": Rule(fit_utility, lambda log_p, params: utility(np.exp(log_p), params)),
    "ordinal": Rule(fit_ordinal, ordinal),
    "calibration": Rule(lambda p, labels, metric, weights: {}, lambda log_p, params: log_p),
}
