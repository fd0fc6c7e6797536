"""Logit adjustment after training (Menon et al., ICLR 2021, "Long-tail learning via logit
adjustment", section 4.1).

A network that was trained on images as they are carries their class prior in its logits.
z_c − τ log N_c, with N_c the images of class c (dividing by their sum would move all logits alike):
τ = 0 changes nothing, τ = 1 takes the whole prior out. Heads that are balanced already are left
alone.

N_c counts the images of all folds. A fold's own counts would say which class lacks an image, the
one held out: where classes have three images, that alone raises the score out of fold, by a gain
that test images do not give.
"""

import numpy as np

from src.config.losses import balanced_by
from src.config.names import of_stage1
from src.fusion.step import State, Step


class LogitAdjustment(Step):
    def candidates(self):
        """τ = 0 would leave the step out."""
        grid = np.linspace(0, self.section.tau_max, self.section.grid)[1:]
        return [{"tau": round(float(tau), 6)} for tau in grid]

    def refuses(self, state: State):
        if not of_stage1(state.start):
            return f"{state.start} is balanced already"
        if choice := balanced_by(self.config.model, self.config.train):
            return f"{choice} has balanced the classes already"
        if state.counts is None:
            return "needs the classes' counts, none are given"
        if state.counts.min() == state.counts.max():
            return "all classes have as many images"
        return None

    @staticmethod
    def apply(state: State, params):
        prior = np.log(np.maximum(state.counts, 1)).astype(state.logits.dtype)  # [K]
        return state.logits - np.asarray(params["tau"], prior.dtype) * prior
