"""Classifier re-training, cRT (Kang et al., ICLR 2020, section 4.1), and its multi-task form.

The representation stays; the linear classifier is initialised anew and trained with class-balanced
sampling. The multi-task form (a report on TransFG for long-tailed food) adds a parallel head
D → bins that tells the frequency bin of the class: L = CE(class) + w · CE(bin).

On frozen features two linear heads share no parameter, so the second head's gradient never reaches
the first: the class head would come out the same, bit by bit. The source does not say what its
gain (.754 → .766) rests on. Here the heads share a trained adapter of rank r,
g = f + U V f with U = 0 at the start, the last layer of the representation set free, so to speak.
It is linear, so the result is still one linear head: z = W (I + U V) f + b.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from src.config.heads import CRT
from src.metrics import need_bins
from src.networks.heads import Linear, build_head
from src.rebalance.features import FeatureSet, initialise
from src.rebalance.sgd import train


class Adapter(nn.Module):
    """g = f + U V f, with U [D, r] and V [r, D]; the identity at the start. Rank 0 stays it."""

    def __init__(self, width: int, rank: int):
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False) if rank else None
        self.up = nn.Linear(rank, width, bias=False) if rank else None
        if rank:
            nn.init.zeros_(self.up.weight)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features if self.down is None else features + self.up(self.down(features))

    def folded_into(self, weight: torch.Tensor) -> torch.Tensor:
        """W (I + U V), [K, D]."""
        if self.down is None:
            return weight
        return weight + weight @ self.up.weight @ self.down.weight


class Heads(nn.Module):
    """The class head, the adapter below it, and the frequency head beside it if it counts."""

    def __init__(self, spec: CRT, width: int, num_classes: int, num_bins: int):
        super().__init__()
        self.classes: Linear = build_head("linear", width, num_classes, scale=1.0)
        self.adapter = Adapter(width, spec.adapter)
        self.bins = build_head("linear", width, num_bins, 1.0) if spec.frequency_weight else None


def fit_crt(
    spec: CRT, data: FeatureSet, seed: int, device: torch.device
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the head's kind, `linear`, and its weight [K, D] and bias [K].

    Errors: UserError when a frequency head has nothing to tell apart.
    """
    classes = data.classes
    if spec.frequency_weight:
        need_bins(classes.num_bins, f"stage2 head {spec.title}: frequency_weight")
    bin_of = torch.tensor(classes.bins, device=device)
    torch.manual_seed(seed)
    heads = Heads(spec, data.width, classes.num, classes.num_bins)
    initialise(heads.classes, spec, data)
    heads.to(device)

    def loss(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        g = heads.adapter(features)
        value = F.cross_entropy(heads.classes(g), labels, label_smoothing=spec.smoothing)
        if heads.bins is not None:
            value = value + spec.frequency_weight * F.cross_entropy(heads.bins(g), bin_of[labels])
        return value

    train(heads, loss, data.batches(spec, seed, device), len(data.labels), spec)
    weight = heads.adapter.folded_into(heads.classes.weight).detach()
    bias = heads.classes.bias.detach()
    return "linear", {"weight": weight.cpu().numpy(), "bias": bias.cpu().numpy()}
