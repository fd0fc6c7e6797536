"""Seesaw loss (Wang et al., CVPR 2021, eq. 2 to 6), for classification."""

import numpy as np
import torch
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.losses import Seesaw
from src.losses.base import Criterion


class SeesawLoss(Criterion):
    """L = −log( e^{z_i} / (e^{z_i} + Σ_{j ≠ i} S_ij e^{z_j}) ) for label i, S = M · C.

    Mitigation M_ij = min(1, (N_j / N_i)^p): images of a large class i push smaller classes j down
    less. Compensation C_ij = max(1, (σ_j / σ_i)^q): more again where j is mistaken for i; σ is the
    softmax of z, without gradient. Counts are those of the training subset, not accumulated over
    the steps; a class without an image has N = 1. p = q = 0 is cross-entropy.
    """

    def __init__(self, config: Seesaw, classes: Classes, scale: float = 1.0):
        super().__init__(config, classes)
        self.p, self.q, self.smoothing = config.p, config.q, config.smoothing
        self.constant("log_counts", np.log(np.maximum(classes.counts, 1)))

    def per_sample(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        mitigation = self.p * (self.log_counts - self.log_counts[labels, None]).clamp_max(0)
        lead = (logits - logits.gather(1, labels[:, None])).detach()  # log(σ_j / σ_i)
        factors = mitigation + self.q * lead.clamp_min(0)  # log S, [N, K], 0 at j = i
        return F.cross_entropy(
            logits + factors, labels, reduction="none", label_smoothing=self.smoothing
        )
