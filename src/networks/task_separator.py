"""Task separator: a gate on the baseline's logits sends each image to the expert of a bin (from a
report on TransFG for long-tailed food).

The baseline is a plain network; every bin (many / medium / few) has an expert, a plain network over
all K classes that is trained on the images of its bin alone. With z the baseline's logits [N, K],
g = MLP(sg(z)): K → 512 → 256 → 128 → bins, and z^b the logits of expert b:

    L    = L(z, y) + mean over bins of L(z^b, y)_{bin(y) = b} + CE(g, bin(y))
    hard   logits = z^b with b = argmax g
    soft   logits = log Σ_b softmax(g)_b softmax(z^b)

The source trains baseline, experts and gate one after the other, the gate with Adam and learning
rate steps of its own. Here they are one network that is trained at once, so that one config, one
checkpoint and one optimizer drive all: no gradient passes between the parts, only the gate's input
still moves while it learns. Normalising that input per image lets any optimizer's lr suit the gate.
Inference costs a pass through the baseline and one through every expert.

In small batches few images belong to the rarest bin. With `train.second_sampler: class_balanced`,
the experts learn from the second stream, and baseline and gate from the first.

Features and `classifier` are the baseline's: stage 2 re-balances the baseline.
"""

from copy import deepcopy
from itertools import chain, pairwise

import torch
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.data.dataset import Batch
from src.metrics import need_bins
from src.networks.base import PLAIN, Body, Output, Progress, mixed
from src.networks.plain import Plain

HIDDEN = (512, 256, 128)


class TaskSeparator(Plain):
    """`experts[b]` is the expert of bin b; all begin as copies of the baseline's backbone.

    Errors: UserError when all classes are in one bin.
    """

    of_classes = ("gate.",)

    def __init__(self, model: Model, backbone: nn.Module, classes: Classes):
        super().__init__(model, backbone, classes)
        count = classes.num_bins
        need_bins(count, "model.network=task_separator")
        self.routing = model.network.routing
        self.register_buffer("bins", torch.from_numpy(classes.bins), persistent=False)
        self.experts = nn.ModuleList(
            Plain(model, deepcopy(backbone), classes) for _ in range(count)
        )
        widths = (classes.num, *HIDDEN)
        hidden = [(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(widths)]
        self.gate = nn.Sequential(
            nn.LayerNorm(classes.num, elementwise_affine=False),
            *chain.from_iterable(hidden),
            nn.Linear(HIDDEN[-1], count),
        )

    def forward(self, images: torch.Tensor) -> Output:
        """logits: routed · features: the baseline's."""
        baseline = super().forward(images)
        experts = torch.stack([expert(images).logits.float() for expert in self.experts], 1)
        gate = self.gate(baseline.logits).float()
        return Output(route(gate, experts, self.routing), baseline.features)

    def loss(
        self, batch: Batch, criterion: nn.Module, progress: Progress
    ) -> tuple[dict[str, torch.Tensor], Output]:
        baseline = super().forward(batch.images)
        gate = self.gate(baseline.logits.detach()).float()
        terms = {
            "criterion": mixed(criterion, baseline.logits, batch),
            "experts": self._experts_loss(batch.other or batch, criterion),
            "gate": F.cross_entropy(gate, self.bins[batch.labels]),
        }
        return terms, baseline

    def _experts_loss(self, batch: Batch, criterion: nn.Module) -> torch.Tensor:
        """Mean over the experts. One with fewer than two images, which is too few for batch norm,
        gets a gradient of zero: several processes expect one for every weight."""
        bins, losses = self.bins[batch.labels], []
        for b, expert in enumerate(self.experts):
            rows = (bins == b).nonzero()[:, 0]
            if len(rows) < 2:
                losses.append(0.0 * sum(p.sum() for p in expert.parameters()))
                continue
            logits = expert(batch.images[rows]).logits.float()
            losses.append(criterion(logits, batch.labels[rows]))
        return torch.stack(losses).mean()

    def bodies(self) -> list[Body]:
        return [Body(self.backbone), *(Body(expert.backbone) for expert in self.experts)]

    def adopt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A plain network's weights go into the baseline and into every expert, and so do a
        baseline's where there are more bins now than it had experts."""
        plain = {k: v for k, v in state.items() if k.startswith(PLAIN)}
        return {
            f"experts.{b}.{key}": tensor
            for b in range(len(self.experts))
            for key, tensor in plain.items()
        } | state


def route(gate: torch.Tensor, experts: torch.Tensor, how: str) -> torch.Tensor:
    """gate: [N, B] · experts: logits [N, B, K] → logits [N, K]; `how`: hard or soft."""
    if how == "hard":
        return experts[torch.arange(len(gate), device=gate.device), gate.argmax(1)]
    trust = F.log_softmax(gate, 1)[:, :, None]
    return torch.logsumexp(trust + F.log_softmax(experts, 2), 1)
