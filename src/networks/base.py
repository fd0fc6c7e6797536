"""What every network offers to the training loop and to inference."""

from dataclasses import dataclass

import numpy as np
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
    the whole training · epochs: of the whole training."""

    epoch: int
    step: int
    fraction: float
    epochs: int = 1


class Network(nn.Module):
    """images [N, 3, H, W] → `Output`. `classifier` is the last layer: what stage 2 replaces.

    Subclasses are built from (model, backbone, classes). They set `backbone`, `classifier` and
    `forward`, and override `loss` when training minimises something else than the criterion of the
    logits, and `classifiers` when there are several.
    """

    backbone: nn.Module
    classifier: nn.Module

    def forward(self, images: torch.Tensor) -> Output:
        raise NotImplementedError

    def classifiers(self) -> dict[str, tuple[nn.Module, tuple[int, int] | None]]:
        """The heads by name, which the network's section lists as `branches`, each with the columns
        (from, to) of the features that it acts on, None: all. One head has no name."""
        return {"": (self.classifier, None)}

    def heads(self) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
        """Kind and arrays of each head by name, as `src.logits.head_logits` takes them."""
        found = {}
        for name, (module, columns) in self.classifiers().items():
            arrays = {k: v.float().cpu().numpy() for k, v in module.arrays().items()}
            if columns is not None:
                arrays["columns"] = np.array(columns)
            found[name] = (module.kind, arrays)
        return found

    @property
    def width(self) -> int:
        """D, of the features."""
        ends = [
            module.weight.shape[1] if columns is None else columns[1]
            for module, columns in self.classifiers().values()
        ]
        return max(ends)

    def mix_points(self) -> list[nn.Module]:
        """Modules at whose input manifold mixup may mix, called once per forward pass each."""
        return []

    def loss(
        self, batch: Batch, criterion: nn.Module, progress: Progress
    ) -> tuple[dict[str, torch.Tensor], Output]:
        """Named scalar terms, whose sum training minimises, and the output for `batch.images` that
        they were computed from: auxiliaries build on it, so that nothing is run twice."""
        output = self(batch.images)
        return {"criterion": mixed(criterion, output.logits, batch)}, output

    def bodies(self) -> list[nn.Module]:
        """Backbones and copies of their parts, which may start from pretrained weights; what is
        outside of them is fresh and trains at `head_lr_factor`."""
        return [self.backbone]

    def adopt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of a plain network (`backbone.…`, `classifier.…`) or of one like this, under
        the names of this one: what is there several times starts from the same weights."""
        return state


def mixed(criterion: nn.Module, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The criterion in float32, for plain and for mixed batches (mixup, eq. 2 in its loss form)."""
    logits = logits.float()
    if batch.partner is None:
        return criterion(logits, batch.labels)
    first = criterion(logits, batch.labels, batch.share)
    return first + criterion(logits, batch.partner, 1 - batch.share)
