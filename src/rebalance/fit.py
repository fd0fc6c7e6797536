"""Heads that are trained to tell the classes apart and nothing more."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from src.config.heads import Trained
from src.rebalance.features import FeatureSet, initialise
from src.rebalance.sgd import train


def fit_by_cross_entropy(
    head: nn.Module, spec: Trained, data: FeatureSet, seed: int, device: torch.device
) -> tuple[str, dict[str, np.ndarray]]:
    """From where `spec.init` says; returns the head's kind and arrays."""
    initialise(head, spec, data)
    head.to(device)

    def loss(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(features), labels, label_smoothing=spec.smoothing)

    train(head, loss, data.batches(spec, seed, device), len(data.labels), spec)
    return head.kind, {name: tensor.cpu().numpy() for name, tensor in head.arrays().items()}
