"""τ-normalisation of the start head (Kang et al., ICLR 2020, "Decoupling Representation and
Classifier for Long-Tailed Recognition", section 4).

Frequent classes have weight vectors with larger norms. z_c = f · w_c / ‖w_c‖^τ, bias dropped:
τ = 0 keeps the norms, τ = 1 makes them equal (L2-normalisation). Alshammari et al. (CVPR 2022)
keep the bias: `bias: kept`.
"""

import numpy as np

from src.fusion.step import State
from src.fusion.weights import FromWeights, norms, rescaled


class TauNorm(FromWeights):
    def candidates(self):
        return self.grid("tau", np.linspace(0, self.section.tau_max, self.section.grid))

    @staticmethod
    def apply(state: State, params):
        return rescaled(state, params, norms(state) ** -params["tau"])
