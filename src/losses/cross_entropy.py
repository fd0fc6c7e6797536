"""Cross-entropy with label smoothing."""

import torch
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.losses import CrossEntropy
from src.losses.base import Criterion


class CrossEntropyLoss(Criterion):
    """L = −Σ_c q_c log softmax(z)_c, with q = (1 − ε) · onehot(y) + ε / K."""

    def __init__(self, config: CrossEntropy, classes: Classes, scale: float = 1.0):
        super().__init__(config, classes)
        self.smoothing = config.smoothing

    def per_sample(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)
