"""What every criterion offers to networks and to the training loop."""

import math

import numpy as np
import torch
from torch import nn

from src.artifacts.dataset import Classes
from src.networks.base import Progress


class Criterion(nn.Module):
    """(logits [N, K], labels [N]) → a number. Subclasses define `per_sample`.

    The number is the weighted mean Σ_i w_{y_i} l_i / Σ_i w_{y_i}, as in
    F.cross_entropy(weight=w): class weights shift the balance between classes and leave the size
    of the loss alone. Without weights it is the plain mean. With gradient accumulation or several
    processes, each part of a batch is normalised by itself.

    Built from its config section, what is known about the classes (counts are those of the actual
    training subset), and the scale s of a cosine head (1 for others).
    """

    def __init__(self, config, classes: Classes, scale: float = 1.0):
        super().__init__()
        self.weighted_from = math.inf
        self.weighted = False

    def constant(self, name: str, values: np.ndarray) -> None:
        """A float32 buffer that follows the module to its device and stays out of checkpoints."""
        self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def weigh(self, weights: np.ndarray, start: float = 0.0) -> None:
        """Weigh classes by `weights` [K] from the fraction `start` of the training on: deferred
        re-weighting (DRW, Cao et al., NeurIPS 2019, algorithm 1)."""
        self.constant("weights", weights)
        self.weighted_from = start
        self.weighted = start <= 0

    def set_progress(self, progress: Progress) -> None:
        """Called before each forward pass; a function of `progress` alone, so that resuming needs
        no state of it."""
        self.weighted = progress.fraction >= self.weighted_from

    def per_sample(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[N, K], [N] → [N]"""
        raise NotImplementedError

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, share: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """share: how much each image counts for these labels, one number or [N]: mixed images
        have two labels. The result is linear in it."""
        losses = self.per_sample(logits, labels) * share
        if not self.weighted:
            return losses.mean()
        weights = self.weights[labels]
        return (weights * losses).sum() / weights.sum()
