"""Learnable weight scaling (Kang et al., ICLR 2020, section 4.3).

z = s ⊙ (W f + b) with one factor per class, s = 1 at the start; W and b are stage 1's and stay, and
the bias is scaled too. Exported as a linear head: weight = s · W, bias = s · b.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from src.config.heads import LWS
from src.rebalance.features import FeatureSet, stage1_classifier
from src.rebalance.sgd import train


class Scale(nn.Module):
    """z = s ⊙ (W f + b); only s is a parameter."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.scale = nn.Parameter(torch.ones(len(bias)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.scale * F.linear(features, self.weight, self.bias)


def fit_lws(
    spec: LWS, data: FeatureSet, seed: int, device: torch.device
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the head's kind, `linear`, and its weight [K, D] and bias [K].

    Errors: UserError unless stage 1 has a linear classifier.
    """
    weight, bias = stage1_classifier(data, spec.head)
    head = Scale(torch.from_numpy(weight), torch.from_numpy(bias)).to(device)

    def loss(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(features), labels)

    train(head, loss, data.batches(spec, seed, device), len(data.labels), spec)
    scale = head.scale.detach().cpu().numpy()
    return "linear", {"weight": scale[:, None] * weight, "bias": scale * bias}
