"""Label-distribution-aware margins (Cao et al., NeurIPS 2019, eq. 12 and 13)."""

import numpy as np
import torch
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.losses import LDAM
from src.losses.base import Criterion


class LDAMLoss(Criterion):
    """L = CE(s (cos − Δ_y), y): the label's cosine must win by Δ_y, Δ_c = m N_c^{−1/4} / max_j
    N_j^{−1/4}, so that the smallest class has margin m.

    The cosine head's logits are s · cos already, so s · Δ_y is subtracted. Classes without an
    image get margin m. m = 0 is cross-entropy.
    """

    def __init__(self, config: LDAM, classes: Classes, scale: float = 1.0):
        super().__init__(config, classes)
        counts = np.asarray(classes.counts, float)
        fewest = counts[counts > 0].min()
        margins = config.max_margin * (np.maximum(counts, fewest) / fewest) ** -0.25
        self.constant("margins", scale * margins)

    def per_sample(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        margins = F.one_hot(labels, logits.shape[1]) * self.margins
        return F.cross_entropy(logits - margins, labels, reduction="none")
