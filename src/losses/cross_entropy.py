"""Cross-entropy with label smoothing."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from src.schema import CrossEntropy


class CrossEntropyLoss(nn.Module):
    """L = −Σ_c q_c log softmax(z)_c, with q = (1 − ε) · onehot(y) + ε / K."""

    def __init__(self, config: CrossEntropy, counts: np.ndarray):
        super().__init__()
        self.smoothing = config.smoothing

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
