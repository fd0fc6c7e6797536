"""Criteria: (logits [N, K], labels [N]) → mean loss. `train.criterion.name` chooses from the table.

Each is built from its config section and the class counts [K] of the actual training subset.
"""

import numpy as np
from torch import nn

from src.losses.balanced_softmax import BalancedSoftmaxLoss
from src.losses.cross_entropy import CrossEntropyLoss

CRITERIA = {"cross_entropy": CrossEntropyLoss, "balanced_softmax": BalancedSoftmaxLoss}


def build_criterion(config, counts: np.ndarray) -> nn.Module:
    """config: the `train.criterion` section · counts: training images per label, [K]"""
    return CRITERIA[config.name](config, counts)
