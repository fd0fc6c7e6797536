"""LADE: label distribution disentangling loss (Hong et al., CVPR 2021, eq. 9)."""

import math

import numpy as np
import torch

from src.artifacts.dataset import Classes
from src.config.losses import LADE, BalancedSoftmax
from src.losses.balanced_softmax import BalancedSoftmaxLoss
from src.losses.base import Criterion


class LADELoss(Criterion):
    """L = CE(z + log π, y) + α R, R = Σ_c π_c (−mean_{i: y_i = c} z_ic + g_c + λ g_c²), where
    g_c = log mean_i exp(z_ic − log(K π_c)) and i runs over the batch.

    The first term learns the posterior under the training prior π; R, a regularised
    Donsker-Varadhan bound, drives z_c towards log p(x | c) / p_u(x), its value under a uniform
    prior. α = 0 is balanced softmax. Classes that the batch lacks have no mean, and π_c = 0 drops
    classes without any image. Class weights act on the first term, R has its own in π.
    """

    def __init__(self, config: LADE, classes: Classes, scale: float = 1.0):
        super().__init__(config, classes)
        self.alpha, self.penalty = config.alpha, config.penalty
        self.softmax = BalancedSoftmaxLoss(BalancedSoftmax(), classes)
        counts = np.asarray(classes.counts)
        total = counts.sum()
        self.constant("prior", counts / total)
        self.constant("log_ratio", np.log(len(counts) * np.maximum(counts, 1) / total))

    def per_sample(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.softmax.per_sample(logits, labels)

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, share: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        loss = super().forward(logits, labels, share)
        return loss + self.alpha * self.regulariser(logits, labels, share)

    def regulariser(
        self, logits: torch.Tensor, labels: torch.Tensor, share: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """R of a batch. With shares, each image's part of the means counts by its share, and g by
        their mean: the two label sets of mixed images add up."""
        images, share = len(labels), torch.as_tensor(share).to(logits)
        own = logits.gather(1, labels[:, None])[:, 0]  # z_{i, y_i}
        members = torch.bincount(labels)[labels]
        means = (share * self.prior[labels] * own / members).sum()
        spread = torch.logsumexp(logits - self.log_ratio, 0) - math.log(images)  # g, [K]
        bound = (self.prior * (spread + self.penalty * spread**2)).sum()
        return share.mean() * bound - means
