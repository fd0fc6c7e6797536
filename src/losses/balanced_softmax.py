"""Balanced softmax (Ren et al., NeurIPS 2020, eq. 4) and the logit-adjusted loss (Menon et al.,
ICLR 2021, eq. 10): the same loss under two names."""

import numpy as np
import torch
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.losses import BalancedSoftmax
from src.losses.base import Criterion


class BalancedSoftmaxLoss(Criterion):
    """L = CE(z + τ log N_c, y): the prior of the training set is explained away while training, so
    that plain z is right for a balanced test set. Classes without an image get N_c = 1.

    Logit adjustment adds τ log π_c instead, which is less by the same number for every class, and
    softmax does not see it.
    """

    def __init__(self, config: BalancedSoftmax, classes: Classes, scale: float = 1.0):
        super().__init__(config, classes)
        self.constant("prior", config.tau * np.log(np.maximum(classes.counts, 1)))
        self.smoothing = config.smoothing

    def per_sample(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(
            logits + self.prior, labels, reduction="none", label_smoothing=self.smoothing
        )
