"""A toy criterion: PolyLoss (Leng et al., ICLR 2022, eq. 4)."""

import torch
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.losses import Poly
from src.losses.base import Criterion


class PolyLoss(Criterion):
    """L = −log p_y + ε (1 − p_y)"""

    def __init__(self, config: Poly, classes: Classes, scale: float = 1.0):
        super().__init__(config, classes)
        self.epsilon = config.epsilon

    def per_sample(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        entropy = F.cross_entropy(logits, labels, reduction="none")
        return entropy + self.epsilon * (1 - torch.exp(-entropy))
