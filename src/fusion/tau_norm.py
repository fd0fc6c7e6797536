"""τ-normalisation of the start head (Kang et al., ICLR 2020, "Decoupling Representation and
Classifier for Long-Tailed Recognition", section 4).

Frequent classes have weight vectors with larger norms. z_c = f · w_c / ‖w_c‖^τ, bias dropped:
τ = 0 keeps the norms, τ = 1 makes them equal.
"""

import numpy as np

from src.fusion.step import State, Step
from src.logits import head_logits, seen

SAMPLE = 256  # images on which linearity is checked
TOLERANCE = 0.05  # of the logits' spread; autocast in bf16 stays below


class TauNorm(Step):
    def candidates(self):
        grid = np.linspace(0, self.section.tau_max, self.section.grid)
        return [{"tau": round(float(tau), 6)} for tau in grid]

    def refuses(self, state: State):
        """A cosine head has equal norms, and some networks' logits are no linear function of the
        features that they hand over: both are left alone."""
        kind, arrays = state.heads.get(state.start, (None, None))
        if kind != "linear":
            return f"needs a linear head, {state.start} is {kind or 'none'}"
        if state.features is None:
            return "needs features, none are stored"
        if seen(state.features, arrays).shape[1] != arrays["weight"].shape[1]:
            return "the stored features are not what the head acts on"
        some = state.rows(slice(0, SAMPLE))
        error = some.logits - head_logits(some.features, arrays, kind)
        if np.sqrt(np.mean(error**2)) > TOLERANCE * max(float(some.logits.std()), 1e-12):
            return "the logits are no linear function of the stored features"
        return None

    @staticmethod
    def apply(state: State, params):
        norms = state.once("norms", lambda: _norms(state))
        z = state.once("z", lambda: _without_bias(state))
        return z * (norms ** -params["tau"]).astype(z.dtype)


def _norms(state: State) -> np.ndarray:
    """‖w_c‖, [K]."""
    return np.maximum(np.linalg.norm(state.head(state.start)[1]["weight"], axis=1), 1e-12)


def _without_bias(state: State) -> np.ndarray:
    """f · w_c, [N, K]."""
    kind, arrays = state.head(state.start)
    return head_logits(state.features, {k: v for k, v in arrays.items() if k != "bias"}, kind)
