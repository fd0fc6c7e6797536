"""What every network offers to the training loop and to inference."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from src.data.dataset import Batch
from src.networks.evidence import maps_of

PLAIN = ("backbone.", "neck.", "classifier.")  # how names begin in a plain network


@dataclass
class Output:
    """logits [N, K] · features [N, D], what the classifier sees"""

    logits: torch.Tensor
    features: torch.Tensor


@dataclass
class Evidence:
    """What a network looked at, in the pixels of its input.

    boxes: name → [N, n, 4] float, x0 y0 x1 y1 with x1, y1 exclusive; a box of no area: there is
    none · maps: name → [N, h, w] float, at least 0, each over the whole image and not normalised;
    h, w are the method's own grid
    """

    boxes: dict[str, torch.Tensor] = field(default_factory=dict)
    maps: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How schedules see time. epoch: 0-based · step: optimizer steps so far · fraction: 0 … 1 of
    the whole training · epochs: of the whole training."""

    epoch: int
    step: int
    fraction: float
    epochs: int = 1


class Body(NamedTuple):
    """What may start from pretrained weights, and how fast it learns: lr_factor on the lr, and
    layered, whether `train.layer_decay` lowers it further from each of its layers to the one below
    (module.group_matcher knows them)."""

    module: nn.Module
    lr_factor: float = 1.0
    layered: bool = True


class Network(nn.Module):
    """images [N, 3, H, W] → `Output`. `classifier` is the last layer: what stage 2 replaces.

    Subclasses are built from (model, backbone, classes). They set `backbone`, `classifier` and
    `forward`, and override `loss` when training minimises something else than the criterion of the
    logits, and `classifiers` when there are several.
    """

    of_classes: ClassVar[tuple[str, ...]] = ()  # how names begin of what, besides heads, is about
    # particular classes: of use to a network of the same classes alone, and as a whole
    training_only: ClassVar[tuple[str, ...]] = ()  # how names begin of what `begin` adds, and
    # weights.safetensors leaves out

    backbone: nn.Module
    classifier: nn.Module
    text_width: int = 0  # E of `Classes.text` that it was built with; 0: without

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
            module.weight.shape[-1] if columns is None else columns[1]
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

    def begin(self, source: Path | None, captions: list[list[str]]) -> None:
        """Called once by 02, where the network's section has `captions`, with the weights to start
        from in place. source: their file, if any; captions: of each class, [K]"""

    def bodies(self) -> list[Body]:
        """Backbones and copies of their parts; what is outside of them is fresh and trains at
        `head_lr_factor`."""
        return [Body(self.backbone)]

    def evidence(self, images: torch.Tensor) -> Evidence:
        """What it looked at in images [N, 3, H, W], for its own prediction; asked in eval mode and
        without gradients. By default where the score comes from, or an attention rollout."""
        return Evidence(maps=maps_of(self, images))

    def adopt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of a plain network (`backbone.…`, `classifier.…`) or of one like this, under
        the names of this one: what is there several times starts from the same weights."""
        return state

    @staticmethod
    def plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The way back: weights of a network like this, in which what a plain network can use has
        the names that it has there (`backbone.…`, `neck.…`, `classifier.…`)."""
        return state


def mixed(criterion: nn.Module, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The criterion in float32, for plain and mixed batches (mixup, eq. 2 in its loss form); with
    targets Σ_j share_ij L(z_i, y_ij), for cross-entropy that of Σ_j share_ij onehot(y_ij)."""
    logits = logits.float()
    if batch.partner is None and batch.targets is None:
        return criterion(logits, batch.labels)
    return sum(criterion(logits, labels, share) for labels, share in batch.parts())
