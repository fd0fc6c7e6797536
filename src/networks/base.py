"""What every network offers to the training loop and to inference."""

from dataclasses import dataclass

import torch
from torch import nn

from src.data.dataset import Batch


@dataclass
class Output:
    """logits [N, K] · features [N, D], what the classifier sees"""

    logits: torch.Tensor
    features: torch.Tensor


@dataclass(frozen=True)
class Progress:
    """How schedules see time. epoch: 0-based · step: optimizer steps so far · fraction: 0 … 1 of
    the whole training."""

    epoch: int
    step: int
    fraction: float


class Network(nn.Module):
    """images [N, 3, H, W] → `Output`. `classifier` is the last layer: what stage 2 replaces.

    Subclasses set `classifier` and `forward`, and override `loss` when training minimises
    something else than the criterion of the logits.
    """

    classifier: nn.Module

    def forward(self, images: torch.Tensor) -> Output:
        raise NotImplementedError

    def loss(
        self, batch: Batch, criterion: nn.Module, progress: Progress
    ) -> dict[str, torch.Tensor]:
        """Named scalar terms; training minimises their sum."""
        return {"criterion": mixed(criterion, self(batch.images).logits, batch)}


def mixed(criterion: nn.Module, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The criterion in float32, for plain and for mixed batches (mixup, eq. 2 in its loss form)."""
    logits = logits.float()
    loss = criterion(logits, batch.labels)
    if batch.partner is None:
        return loss
    return batch.share * loss + (1 - batch.share) * criterion(logits, batch.partner)
