"""Criteria: (logits [N, K], labels [N]) → a number. `train.criterion.name` chooses from the table.

One file each; `src/losses/base.py` says what they have in common.
"""

import numpy as np

from src.losses.balanced_softmax import BalancedSoftmaxLoss
from src.losses.base import Criterion
from src.losses.cross_entropy import CrossEntropyLoss
from src.schema import Config

CRITERIA: dict[str, type[Criterion]] = {
    "balanced_softmax": BalancedSoftmaxLoss,
    "cross_entropy": CrossEntropyLoss,
}


def build_criterion(config: Config, counts: np.ndarray) -> Criterion:
    """counts: training images per label, [K]"""
    section = config.train.criterion
    scale = config.model.cosine_scale if config.model.head == "cosine" else 1.0
    return CRITERIA[section.name](section, counts, scale)
