"""Learnable logit weights of two heads, LLW (Sonseca, 2021, fyp-long-tail-recognition).

    z'_c = w1_c z_c + w2_c z̃_c + b_c

with z the start head's logits and z̃ those of another on their scale (src/fusion/pair.py): for each
class, how much each of the heads is to be believed. Fitted on out-of-fold images, class-balanced,
and shrunk towards w1 = 1, w2 = 0, b = 0 (src/fusion/classwise.py).

The source trains the same from N(0, 1) on the training images, which the linear head knows by
heart, lets it decay towards 0 and applies it twice in validation: nothing of this here.
Behind a step `fusion` z is the fused logits, and that is what classes of few images stay at.
"""

import numpy as np

from src.fusion.classwise import Shortlist, fit_classwise, joined, shortlist
from src.fusion.pair import Paired, scaled
from src.fusion.step import State
from src.logits import to_range
from src.metrics import chunks


class LLW(Paired):
    def fit(self, states: list[State], labels: list[np.ndarray]):
        head, scaler = self.other(states[0]), self.section.scaler
        found = [
            _shortlisted(state, y, head, scaler) for state, y in zip(states, labels, strict=True)
        ]
        num_classes = states[0].logits.shape[1]
        theta, strength = fit_classwise(
            found, num_classes, self.section.shrinkage, balanced=self.section.balanced, bias=True
        )
        w1, w2, b = theta.astype(np.float32)
        found = {"head": head, "scaler": scaler, "shrinkage": strength}
        return found | {"w1": w1, "w2": w2, "b": b}

    @staticmethod
    def apply(state: State, params):
        other = scaled(state, params["head"], params["scaler"])
        return params["w1"] * state.logits + params["w2"] * other + params["b"]


def _shortlisted(state: State, labels: np.ndarray, head: str, scaler: str) -> Shortlist:
    """Once per state: every fold left out asks for it."""

    def make() -> Shortlist:
        parts = []
        for rows in chunks(*state.logits.shape):
            part = state.rows(rows)
            other = scaled(part, head, scaler)
            near = np.maximum(part.logits, to_range(other, part.logits))
            parts.append(shortlist([part.logits, other], near, labels[rows]))
        return joined(parts)

    return state.once(("llw", head, scaler, labels.tobytes()), make)
