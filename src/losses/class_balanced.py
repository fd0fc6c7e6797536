"""Class-balanced cross-entropy and focal loss (Cui et al., CVPR 2019, eq. 10 to 13)."""

import numpy as np
import torch

from src.artifacts.dataset import Classes
from src.config.losses import ClassBalanced
from src.losses.base import Criterion
from src.losses.focal import sigmoid_focal, softmax_focal


def effective_weights(counts: np.ndarray, beta: float) -> np.ndarray:
    """w_c ∝ (1 − β) / (1 − β^{N_c}), [K], with mean 1 over the classes that have images.

    β = 0 weighs all classes alike, β → 1 by 1 / N_c. Classes without an image get 0.
    """
    counts = np.asarray(counts)
    present = counts > 0
    inverse = np.where(present, (1 - beta) / (1 - beta ** np.maximum(counts, 1)), 0.0)
    return inverse * present.sum() / inverse.sum()


class ClassBalancedLoss(Criterion):
    """L = w_y · L_0(z, y) with w by effective number.

    softmax: L_0 is focal loss, or cross-entropy for γ = 0, and the weights normalise the batch as
    in every criterion. sigmoid: L_0 = Σ_c −(1 − p_c)^γ log p_c over K yes-or-no questions, divided
    by the number of images, as the authors train.
    """

    def __init__(self, config: ClassBalanced, classes: Classes, scale: float = 1.0):
        super().__init__(config, classes)
        self.gamma, self.sigmoid = config.gamma, config.form == "sigmoid"
        weights = effective_weights(classes.counts, config.beta)
        if self.sigmoid:
            self.constant("factor", weights)
        else:
            self.weigh(weights)

    def per_sample(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.sigmoid:
            return self.factor[labels] * sigmoid_focal(logits, labels, self.gamma)
        return softmax_focal(logits, labels, self.gamma)
