"""MaxNorm of the start head (Alshammari et al., CVPR 2022, "Long-Tailed Recognition via Weight
Balancing", section 4), once and after training; the stage-2 head maxnorm does it in training.

Weights longer than δ are cut to it, w_c ← w_c min(1, δ / ‖w_c‖), with
δ = min‖w‖ + ratio (max‖w‖ − min‖w‖) over the fold's own head; the bias stays unless dropped.
ratio = 1 cuts nothing, ratio = 0 makes all norms equal, as τ-normalisation with τ = 1 does.
"""

import numpy as np

from src.fusion.step import State
from src.fusion.weights import FromWeights, norms, rescaled
from src.logits import norm_radius


class MaxNorm(FromWeights):
    def candidates(self):
        return self.grid("ratio", np.linspace(1, 0, self.section.grid))

    @staticmethod
    def apply(state: State, params):
        length = norms(state)
        radius = norm_radius(length, params["ratio"])
        return rescaled(state, params, np.minimum(1, radius / length))
