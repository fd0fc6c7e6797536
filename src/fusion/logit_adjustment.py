"""Logit adjustment after training (Menon et al., ICLR 2021, "Long-tail learning via logit
adjustment", section 4.1), towards a target prior (PC-softmax: Hong et al., CVPR 2021,
"Disentangling label distribution for long-tailed visual recognition", section 3.1).

    z_c − τ (log π_c − log ρ_c)

π is the class prior that the logits carry: N_c, the images of class c, for a network that was
trained on images as they are; the same for all where criterion, sampler, network or a stage-2 head
has balanced the classes already, so that no prior is taken out twice. ρ is the prior of the
leaderboard (`target_prior`), the same for all where it is not known. Dividing π or ρ by a sum would
move all logits alike. τ = 0 changes nothing, τ = 1 puts ρ fully in the place of π.

N_c counts the images of all folds. A fold's own counts would say which class lacks an image, the
one held out: where classes have three images, that alone raises the score out of fold, by a gain
that test images do not give.
"""

import numpy as np

from src.config.losses import balanced_by
from src.config.names import of_stage1
from src.fusion.step import State, Step

LEAST = 1e-12  # in place of a target of 0


class LogitAdjustment(Step):
    """Params {"tau": τ}, and where π is the same for all whatever the head {"balanced": True}."""

    def candidates(self):
        """τ = 0 would leave the step out."""
        grid = np.linspace(0, self.section.tau_max, self.section.grid)[1:]
        same = {} if self._balanced() is None else {"balanced": True}
        return [{"tau": round(float(tau), 6)} | same for tau in grid]

    def refuses(self, state: State):
        if state.counts is None:
            return "needs the classes' counts, none are given"
        balanced = not of_stage1(state.start) or self._balanced()
        if np.ptp(_shift(state, bool(balanced))) > 1e-9:
            return None
        if not balanced:
            same = state.counts.min() == state.counts.max()
            return (
                "all classes have as many images"
                if same
                else "the target prior is that of the training images"
            )
        by = self._balanced() if of_stage1(state.start) else None
        return f"{by or 'the head'} has balanced the classes already"

    def _balanced(self) -> str | None:
        return balanced_by(self.config.model, self.config.train)

    @staticmethod
    def apply(state: State, params):
        balanced = params.get("balanced", False) or not of_stage1(state.start)
        shift = _shift(state, balanced).astype(state.logits.dtype)
        return state.logits - np.asarray(params["tau"], shift.dtype) * shift


def _shift(state: State, balanced: bool) -> np.ndarray:
    """log π − log ρ, [K]; balanced: π is the same for all."""
    carried = np.zeros(len(state.counts)) if balanced else np.log(np.maximum(state.counts, 1))
    return carried if state.target is None else carried - np.log(np.maximum(state.target, LEAST))
