"""Distillation (Hinton, Vinyals & Dean, 2015): a network learns from what teachers say of an image.

    L = (1 − α) L_own + α T² KL(p ‖ q),   p = softmax(v / T),   q = softmax(z / T)

z: the network's logits, v: the mean of the teachers' (so p is the geometric mean of theirs), L_own:
what the network minimises without a teacher. T² keeps the size of the gradient, which falls with
1 / T² (section 2 there). `balance` corrects the targets of teachers that learned from long tails,
whose v carry the class prior π of the training images:

    prior    p = softmax((v − τ log π) / T)    logit-adjusted (Menon et al., ICLR 2021, section 4)
    weights  p_c ∝ w_c softmax(v / T)_c        w by effective number: balanced knowledge
                                               distillation (Zhang et al., 2021)

Zhang et al. leave L_own as it is: labels teach what images look like, the teacher the balance.

Mixed images have the targets of both, Σ share · KL(p ‖ q) over the two, as they have the labels of
both; pseudo-labelled images count as much as they do for the criterion.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.distill import Distill
from src.data.dataset import Batch
from src.losses.class_balanced import effective_weights


class Distillation(nn.Module):
    """classes: with counts [K] of the labelled images that a fold and its teachers trained on;
    classes without an image count as of one for the prior and have no target by weights."""

    def __init__(self, config: Distill, classes: Classes):
        super().__init__()
        self.temperature, self.share = config.temperature, config.weight
        shift = np.zeros(classes.num)  # of v / T, up to a constant
        if config.balance == "prior":
            shift = -config.tau * np.log(np.maximum(classes.counts, 1)) / config.temperature
        elif config.balance == "weights":
            with np.errstate(divide="ignore"):
                shift = np.log(effective_weights(classes.counts, config.beta))
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32), persistent=False)

    def targets(self, logits: torch.Tensor) -> torch.Tensor:
        """p [N, K] of the teachers' logits v [N, K]."""
        return torch.softmax(logits / self.temperature + self.shift, 1)

    def forward(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """T² KL(p ‖ q), the mean over a batch, of the network's logits z [N, K] for its images."""
        log_q = F.log_softmax(logits / self.temperature, 1)  # [N, K]
        total = logits.new_zeros(len(logits))
        for said, share in batch.taught():
            p = self.targets(said.to(logits.dtype))  # [N, K]
            divergence = (torch.xlogy(p, p) - p * log_q).sum(1)  # [N]
            total = total + share * divergence
        return self.temperature**2 * total.mean()

    def combined(
        self, terms: dict[str, torch.Tensor], logits: torch.Tensor, batch: Batch
    ) -> dict[str, torch.Tensor]:
        """The network's own terms, (1 − α) of each, and `distill`."""
        own = {name: (1 - self.share) * term for name, term in terms.items()}
        return own | {"distill": self.share * self(logits.float(), batch)}
