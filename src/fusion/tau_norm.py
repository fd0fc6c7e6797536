"""τ-normalisation of the start head (Kang et al., ICLR 2020, "Decoupling Representation and
Classifier for Long-Tailed Recognition", section 4).

Frequent classes have weight vectors with larger norms. z_c = f · w_c / ‖w_c‖^τ, bias dropped:
τ = 0 keeps the norms, τ = 1 makes them equal.
"""

import numpy as np

from src.fusion.step import State, Step
from src.logits import head_logits, linear_logits

SAMPLE = 256  # images on which linearity is checked
TOLERANCE = 0.05  # of the logits' spread; autocast in bf16 stays below


def candidates(config):
    grid = np.linspace(0, config.posthoc.tau_max, config.posthoc.grid)
    return [{"tau": round(float(tau), 6)} for tau in grid]


def each(state: State, candidates):
    weight = state.heads[state.start][1]["weight"]
    norms = np.maximum(np.linalg.norm(weight, axis=1), 1e-12)
    z = linear_logits(state.features, weight)
    for params in candidates:
        yield z * (norms ** -params["tau"]).astype(z.dtype)


def refuses(state: State, config):
    """A cosine head has equal norms, and some networks' logits are no linear function of the
    features that they hand over: both are left alone."""
    kind, arrays = state.heads.get(state.start, (None, None))
    if kind != "linear":
        return f"needs a linear head, {state.start} is {kind or 'none'}"
    if state.features is None:
        return "needs features, none are stored"
    if state.features.shape[1] != arrays["weight"].shape[1]:
        return "the stored features are not what the head acts on"
    some = state.rows(slice(0, SAMPLE))
    error = some.logits - head_logits(some.features, arrays, kind)
    if np.sqrt(np.mean(error**2)) > TOLERANCE * max(float(some.logits.std()), 1e-12):
        return "the logits are no linear function of the stored features"
    return None


TAU_NORM = Step("tau_norm", each, candidates, refuses=refuses)
