"""Knowledge transfer (KT) from class means to a second linear head, whose logits are the network's
(github.com/Sonseca97/fyp-long-tail-recognition).

A network and not an auxiliary, because it is the second head that predicts. f: features [N, D] ·
M: a moving mean of f / ‖f‖ per class, [K, D] · sg: stop-gradient · z̃_d: z_d mapped onto the range
of z per row.

    z   = W₁ f + b₁             trains the backbone by the criterion, and is not used afterwards
    z₂  = W₂ sg(f) + b₂         the logits
    z_d = cos(f, M)             the teacher; m: rows where its argmax is the label
    L   = L(z, y) + [φ L(z₂, y) + (1 − φ) KL(softmax(z̃_d / T) ‖ softmax(z₂ / T))]_m + L(z₂, y)_¬m
    M_c ← M_c + a (mean of f_i / ‖f_i‖ over the batch's images of class c − M_c)

[·]_m and [·]_¬m are means over their own rows, so that a few wrong images count as much as many
right ones; those are mostly of frequent classes and look rare, and draw z₂ away from the tail. With
`average: images`, which is ours, each part counts by its rows.

Until `start_epoch`, z₂ learns from labels alone, and M_c is the plain mean over the class's images
of the epoch so far, so that no class is taught by what the network saw in its first steps. A class
met for the first time starts at its mean in that batch. M is part of the trained network, hence of
its checkpoint; the moving average of the weights carries one too, which nothing reads.
"""

import torch
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.config.networks import KT
from src.data.dataset import Batch
from src.networks.base import Output, Progress
from src.networks.heads import class_head
from src.networks.plain import Plain
from src.runtime import gather_rows


class KnowledgeTransfer(Plain):
    """`classifier` is the second head, `first` the one that trains the backbone."""

    of_classes = ("memory", "met")

    def __init__(self, model: Model, backbone: nn.Module, classes: Classes):
        super().__init__(model, backbone, classes)
        self.settings = model.network
        width = self.width
        self.first = class_head(model, width, classes)
        self.register_buffer("memory", torch.zeros(classes.num, width))
        self.register_buffer("met", torch.zeros(classes.num))  # images, see `remember`
        self.gathering = -1  # the epoch whose images are averaged

    def forward(self, images: torch.Tensor) -> Output:
        features = self.embed(images)
        seen = features.detach() if self.training else features
        return Output(self.classifier(self.dropped(seen)), features)

    def loss(
        self, batch: Batch, criterion: nn.Module, progress: Progress
    ) -> tuple[dict[str, torch.Tensor], Output]:
        """One term per head. Every forward pass in training moves the memory."""
        output = self(batch.images)
        first = self.first(self.dropped(output.features)).float()
        second, labels = output.logits.float(), batch.labels
        with torch.autocast(labels.device.type, enabled=False):  # cosines need float32
            directions = F.normalize(output.features.detach().float(), dim=1)
            gather = progress.epoch < self.settings.start_epoch
            if gather:
                taught = criterion(second, labels)
                if progress.epoch > self.gathering:
                    self.met.zero_()
                    self.gathering = progress.epoch
            else:
                teacher = directions @ F.normalize(self.memory, dim=1).T
                teacher = to_range(teacher, first.detach())
                taught = transfer(second, teacher, labels, criterion, self.settings)
            momentum = None if gather else self.settings.momentum
            remember(self.memory, self.met, directions, labels, momentum)
        return {"criterion": criterion(first, labels), "second": taught}, output

    def adopt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The head of a plain network goes into both heads."""
        if any(key.startswith("first.") for key in state):
            return state
        heads = {k: v for k, v in state.items() if k.startswith("classifier.")}
        return state | {"first." + k.removeprefix("classifier."): v for k, v in heads.items()}


def transfer(
    logits: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    criterion: nn.Module,
    settings: KT,
) -> torch.Tensor:
    """The second head's loss. logits: z₂ [N, K] · teacher: z̃_d [N, K] · labels: [N]. A part
    without rows counts nothing."""
    right = teacher.argmax(1) == labels
    by_rows = settings.average == "images"
    loss = logits.new_zeros(())
    if right.any():
        own, taught = logits[right], teacher[right]
        t = settings.temperature
        divergence = F.kl_div(
            F.log_softmax(own / t, 1),
            F.log_softmax(taught / t, 1),
            reduction="batchmean",
            log_target=True,
        )
        labelled = criterion(own, labels[right])
        taught = settings.phi * labelled + (1 - settings.phi) * divergence
        loss = taught * (right.float().mean() if by_rows else 1.0)
    if not right.all():
        wrong = criterion(logits[~right], labels[~right])
        loss = loss + wrong * ((~right).float().mean() if by_rows else 1.0)
    return loss


def to_range(z: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Each row of z [N, K] mapped linearly onto the range of the same row of `like`; its ranking
    stays. src/logits.py has the same for arrays."""
    low, high = z.aminmax(dim=1, keepdim=True)
    to_low, to_high = like.aminmax(dim=1, keepdim=True)
    return (to_high - to_low) * (z - low) / (high - low).clamp(min=1e-12) + to_low


@torch.no_grad()
def remember(
    memory: torch.Tensor,
    met: torch.Tensor,
    directions: torch.Tensor,
    labels: torch.Tensor,
    momentum: float | None,
) -> None:
    """Move the class means [K, D] towards the unit features [N, D] of the batches of all processes,
    which therefore hold the same memory.

    met: images behind each mean, [K], counted on · momentum: a; None: the mean of all these images
    """
    directions, labels = gather_rows(directions), gather_rows(labels)
    counts = torch.bincount(labels, minlength=len(memory)).to(memory.dtype)
    sums = torch.zeros_like(memory).index_add_(0, labels, directions)
    means = sums / counts.clamp(min=1)[:, None]
    if momentum is None:
        step = counts / (met + counts).clamp(min=1)
    else:
        step = torch.where(met > 0, momentum, 1.0) * (counts > 0)
    memory += step[:, None] * (means - memory)
    met += counts
