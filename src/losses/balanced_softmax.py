"""Balanced softmax (Ren et al., NeurIPS 2020, eq. 4); the logit-adjusted loss of Menon et al.
(ICLR 2021, eq. 10) is the same up to a constant, with strength τ."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from src.schema import BalancedSoftmax


class BalancedSoftmaxLoss(nn.Module):
    """L = CE(z + τ log N_c, y): the prior of the training set is explained away while training, so
    that plain z is right for a balanced test set. Classes without an image get N_c = 1."""

    def __init__(self, config: BalancedSoftmax, counts: np.ndarray):
        super().__init__()
        prior = config.tau * np.log(np.maximum(counts, 1))
        self.register_buffer("prior", torch.tensor(prior, dtype=torch.float32), persistent=False)
        self.smoothing = config.smoothing

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits + self.prior, labels, label_smoothing=self.smoothing)
