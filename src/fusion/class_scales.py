"""A scale for each class, z'_c = s_c z_c: LWS (Kang et al., ICLR 2020, section 4.3) on out-of-fold
images in the place of the training images, for any head. s is shrunk towards 1
(src/fusion/classwise.py).

For a linear head it is s_c (w_c · f + b_c): the bias is scaled with the weights, as in the stage-2
head lws; for a cosine head every class gets a scale of its own.
"""

import numpy as np

from src.fusion.classwise import Shortlist, fit_classwise, joined, shortlist
from src.fusion.step import State, Step
from src.metrics import chunks


class ClassScales(Step):
    def fit(self, states: list[State], labels: list[np.ndarray]):
        found = [_shortlisted(state, y) for state, y in zip(states, labels, strict=True)]
        num_classes, keys = states[0].logits.shape[1], self.section
        theta, strength = fit_classwise(
            found, num_classes, keys.shrinkage, balanced=keys.balanced, bias=False
        )
        return {"shrinkage": strength, "scale": theta[0].astype(np.float32)}

    @staticmethod
    def apply(state: State, params):
        return params["scale"] * state.logits


def _shortlisted(state: State, labels: np.ndarray) -> Shortlist:
    def make() -> Shortlist:
        z = state.logits
        return joined([shortlist([z[rows]], z[rows], labels[rows]) for rows in chunks(*z.shape)])

    return state.once(("class_scales", labels.tobytes()), make)
