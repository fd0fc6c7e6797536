"""Fusion of the start head with another head or branch (Sonseca, "Long-tail recognition", 2021:
github.com/Sonseca97/fyp-long-tail-recognition, which fuses a linear head with class means).

z are the start head's logits, z_d the other's and z̃ those on the scale of z (src/fusion/pair.py):

    sum             z + z̃
    softmax_sum     log of the mean of softmax(z) and softmax(z̃)
    max             max(z_c, z̃_c): its argmax is that over the concatenation of both
    convex          w z + (1 − w) z̃
    softmax_convex  log(w softmax(z) + (1 − w) softmax(z̃))

w = 1 would leave the step out, w = 0 is the other head alone. The first four are the source's
baselines, points of one grid scaler × operator × w. Behind minmax and eta both heads have the same
largest logit, so that there `max` changes what stands below it and never the prediction.
`ncm_fusion` is the part of the grid that is convex and min–max, with heads of kind ncm.

Both heads should carry the same prior: what carries the class prior like the start head, a branch
of the same network, is fused before logit_adjustment, what is balanced (ncm, crt) after it.
"""

import numpy as np
from scipy.special import softmax

from src.fusion.pair import check_pair, partners, scaled
from src.fusion.step import State, Step

WEIGHTED = ("convex", "softmax_convex")
FIRST = {"scaler": "minmax", "operator": "convex"}  # of recipes that name neither: they are older
TINY = np.finfo(np.float32).tiny


class Fusion(Step):
    def reads(self):
        return partners(self.config, self.section.heads)

    def candidates(self):
        """In the order of the start head's share, w or a half."""
        keys, found = self.section, []
        for operator in keys.operators:
            grid = np.linspace(1, 0, keys.grid)[1:] if operator in WEIGHTED else [None]
            for w in grid:
                weight = {} if w is None else {"w": round(float(w), 6)}
                for scaler in keys.scalers:
                    common = {"scaler": scaler, "operator": operator}
                    found += [{"head": head} | common | weight for head in self.reads()]
        return sorted(found, key=lambda params: -params.get("w", 0.5))

    def refuses(self, state: State):
        heads = [head for head in self.reads() if head != state.start]
        if not heads:
            if self.reads():
                return "a head is not fused with itself, and there is no other to fuse it with"
            return "needs another head: one of kind ncm in stage2, or one named in `heads`"
        return next(filter(None, (check_pair(state, head) for head in heads)), None)

    @staticmethod
    def apply(state: State, params):
        params = FIRST | params
        head, scaler, operator = (params[key] for key in ("head", "scaler", "operator"))
        z, other, w = state.logits, scaled(state, head, scaler), params.get("w", 0.5)
        if operator == "sum":
            return z + other
        if operator == "max":
            return np.maximum(z, _below(other, z))
        if operator == "convex":
            return w * z + (1 - w) * other
        p = state.once("softmax", lambda: softmax(z, axis=1))
        q = state.once(("softmax", head, scaler), lambda: softmax(other, axis=1))
        return np.log(np.maximum(w * p + (1 - w) * q, TINY))


def _below(other: np.ndarray, z: np.ndarray) -> np.ndarray:
    """`other` [N, K], kept below the largest z of rows where both heads' largest are the same, as
    minmax and eta make them: there the concatenation, in which z comes first, decides for z, and
    without this rounding or the order of the classes would."""
    top = z.max(1, keepdims=True)
    tie = other.max(1, keepdims=True) <= top + 1e-5 * np.abs(top)
    return np.where(tie, np.minimum(other, np.nextafter(top, -np.inf, dtype=z.dtype)), other)
