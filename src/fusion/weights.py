"""What steps have in common that start again from a linear head's weights and change their norms.

    z_c = s_c f · w_c          or, where `bias` is kept, z_c = s_c f · w_c + b_c

with a factor s_c of each class's norm ‖w_c‖. Kang et al. (2020) drop the bias, Alshammari et al.
(2022) keep it. Where norms are not the point there are heads: class means in the place of weights
are the stage-2 head ncm, from which 04 starts like from any other and which `fusion` reaches at
w = 0; scales learned on training features are the head lws, on out-of-fold images class_scales.
"""

import numpy as np

from src.fusion.step import Params, State, Step
from src.logits import head_logits, seen

SAMPLE = 256  # images on which linearity is checked
TOLERANCE = 0.05  # of the logits' spread; autocast in bf16 stays below


class FromWeights(Step):
    def refuses(self, state: State):
        """A cosine head has equal norms, and some networks' logits are no linear function of the
        features that they hand over: both are left alone."""
        kind, arrays = state.heads.get(state.start, (None, None))
        if kind != "linear":
            return f"needs a linear head, not one of kind {kind}" if kind else "needs a linear head"
        if state.features is None:
            return "needs features, none are stored"
        if seen(state.features, arrays).shape[1] != arrays["weight"].shape[1]:
            return "the stored features are not what the head acts on"
        some = state.rows(slice(0, SAMPLE))
        error = some.logits - head_logits(some.features, arrays, kind)
        if np.sqrt(np.mean(error**2)) > TOLERANCE * max(float(some.logits.std()), 1e-12):
            return "the logits are no linear function of the stored features"
        return None

    def grid(self, key: str, values: np.ndarray) -> list[Params]:
        """A candidate for each value, the first of which would leave the norms as they are: with
        the bias kept it would leave the step out."""
        kept = self.section.bias == "kept"
        also = {"bias": "kept"} if kept else {}
        return [{key: round(float(v), 6)} | also for v in values[1 if kept else 0 :]]


def norms(state: State) -> np.ndarray:
    """‖w_c‖ of the start head, [K]."""
    weight = state.head(state.start)[1]["weight"]
    return state.once("norms", lambda: np.maximum(np.linalg.norm(weight, axis=1), 1e-12))


def rescaled(state: State, params: Params, factors: np.ndarray) -> np.ndarray:
    """s_c f · w_c, and b_c where params keep it, [N, K]; factors: s [K]"""
    z = state.once("z", lambda: _without_bias(state))
    z = z * factors.astype(z.dtype)
    bias = state.head(state.start)[1].get("bias")
    return z + bias if params.get("bias") == "kept" and bias is not None else z


def _without_bias(state: State) -> np.ndarray:
    """f · w_c, [N, K]."""
    kind, arrays = state.head(state.start)
    return head_logits(state.features, {k: v for k, v in arrays.items() if k != "bias"}, kind)
