"""Classifiers: features [N, D] → logits [N, K]."""

import torch
from torch import nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """z = W f + b."""

    kind = "linear"

    def arrays(self) -> dict[str, torch.Tensor]:
        """What head.safetensors holds."""
        return {"weight": self.weight.detach(), "bias": self.bias.detach()}

    @torch.no_grad()
    def start_from(self, arrays: dict[str, torch.Tensor]) -> None:
        """weight [K, D] and bias [K] of an initialiser."""
        self.weight.copy_(arrays["weight"])
        self.bias.copy_(arrays["bias"])


class Cosine(nn.Module):
    """z = s · cos(f, w_c), with a fixed scale s."""

    kind = "cosine"

    def __init__(self, width: int, num_classes: int, scale: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, width))
        self.register_buffer("scale", torch.tensor(float(scale)))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):  # cosines need float32
            return self.scale * F.linear(
                F.normalize(features.float(), dim=1), F.normalize(self.weight, dim=1)
            )

    def arrays(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight.detach(), "scale": self.scale}

    @torch.no_grad()
    def start_from(self, arrays: dict[str, torch.Tensor]) -> None:
        """weight [K, D] of an initialiser."""
        self.weight.copy_(arrays["weight"])


def build_head(kind: str, width: int, num_classes: int, scale: float) -> Linear | Cosine:
    """A fresh head. Linear weights start near zero: all classes begin equal."""
    if kind == "cosine":
        return Cosine(width, num_classes, scale)
    head = Linear(width, num_classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head
