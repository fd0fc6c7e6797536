"""What every auxiliary offers to the training loop."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from src.data.dataset import Batch
from src.networks.base import Output, Progress


class Auxiliary(nn.Module):
    """Built from (section, network, classes)."""

    def beside(self, batch: Batch) -> AbstractContextManager:
        """Entered before the network's pass over `batch.images` and left after its loss."""
        return nullcontext()

    def forward(self, output: Output, batch: Batch, progress: Progress) -> torch.Tensor:
        """A number, the weight included. output: the network's for `batch.images`"""
        raise NotImplementedError
