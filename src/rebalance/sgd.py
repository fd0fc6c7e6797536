"""The one loop in which stage 2 trains: SGD with momentum 0.9, cosine to zero, over features."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from src.config.heads import Trained
from src.data.samplers import epoch_order
from src.errors import UserError

# epoch → batches of features [B, D] and labels [B], on the device
Batches = Callable[[int], Iterable[tuple[torch.Tensor, torch.Tensor]]]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Plan(NamedTuple):
    """steps: of each epoch · size: features per step; what does not fill a step is left out"""

    epochs: int
    steps: int
    size: int


def plan(spec: Trained, images: int) -> Plan:
    """How a head is trained on N features."""
    size = min(spec.batch_size, images)
    steps = images // size
    return Plan(spec.passes(steps), steps, size)


def rows_of_epoch(
    spec: Trained, labels: np.ndarray, num_classes: int, seed: int, epoch: int
) -> np.ndarray:
    """Which of the features with `labels` [N] an epoch sees by the head's sampler, [N]."""
    epochs = plan(spec, len(labels)).epochs
    return epoch_order(
        spec.sampler, labels, num_classes, seed, epoch, epochs, power=spec.sampler_power
    )


def train(
    module: nn.Module,
    loss: Loss,
    batches: Batches,
    images: int,
    spec: Trained,
    after_epoch: Callable[[], None] = lambda: None,
) -> None:
    """Minimise `loss(features, labels)` over the parameters of `module`, in place.

    images: N, of which `batches` makes `plan(spec, N).steps` batches per epoch.
    Errors: UserError when the parameters are no longer finite.
    """
    epochs, steps, _ = plan(spec, images)
    if not epochs:
        return
    optimizer = torch.optim.SGD(
        module.parameters(), lr=spec.lr, momentum=0.9, weight_decay=spec.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for epoch in range(epochs):
        for features, labels in batches(epoch):
            value = loss(features, labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
        after_epoch()
    if not all(torch.isfinite(p).all() for p in module.parameters()):
        raise UserError(
            f"stage2 head {spec.title}: the weights are no longer finite; lower its lr ({spec.lr})"
        )
