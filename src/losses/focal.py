"""Focal loss (Lin et al., ICCV 2017, eq. 4) in its softmax form."""

import torch
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.losses import Focal
from src.losses.base import Criterion


class FocalLoss(Criterion):
    """L = −(1 − p_y)^γ log p_y, with p = softmax(z). γ = 0 is cross-entropy."""

    def __init__(self, config: Focal, classes: Classes, scale: float = 1.0):
        super().__init__(config, classes)
        self.gamma = config.gamma

    def per_sample(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return softmax_focal(logits, labels, self.gamma)


def softmax_focal(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> torch.Tensor:
    """[N, K], [N] → [N]. 1 − p is kept above 0, where the slope of a root is infinite."""
    log_p = -F.cross_entropy(logits, labels, reduction="none")
    return -((-torch.expm1(log_p)).clamp_min(1e-12) ** gamma) * log_p


def sigmoid_focal(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> torch.Tensor:
    """[N, K], [N] → [N]: Σ_c −(1 − p_c)^γ log p_c, where p_c = σ(z_c) for the label and σ(−z_c) for
    the other classes."""
    sign = 2.0 * F.one_hot(labels, logits.shape[1]) - 1
    wrong = F.logsigmoid(-sign * logits)  # log(1 − p)
    return -(torch.exp(gamma * wrong) * F.logsigmoid(sign * logits)).sum(1)
