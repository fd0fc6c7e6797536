"""Classifiers: features [N, D] → logits [N, K]."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.logits import centred


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


class SubCentre(Cosine):
    """z_c = s · max_j cos(f, w_cj): a class is where any of its n centres is (Deng et al., ECCV
    2020, "Sub-center ArcFace", section 3.3), for classes of several looks, and for wrong labels,
    which gather around a centre of their own.
    """

    kind = "subcentre"

    def __init__(self, width: int, num_classes: int, scale: float, centres: int):
        super().__init__(width, num_classes * centres, scale)
        self.weight = nn.Parameter(self.weight.detach().view(num_classes, centres, width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            centres = F.normalize(self.weight, dim=2).flatten(0, 1)  # [K n, D]
            cosines = F.linear(F.normalize(features.float(), dim=1), centres)  # [N, K n]
            return self.scale * cosines.view(len(features), *self.weight.shape[:2]).amax(2)

    @torch.no_grad()
    def start_from(self, arrays: dict[str, torch.Tensor]) -> None:
        """weight [K, D] of an initialiser: the first centre of each class. The others start beside
        it, by 0.3 times their own fresh directions: equal centres would stay equal for ever."""
        first = F.normalize(arrays["weight"], dim=1)[:, None]  # [K, 1, D]
        beside = 0.3 * F.normalize(self.weight, dim=2)  # [K, n, D]
        beside[:, 0] = 0
        self.weight.copy_(first + beside)


class LabelEmbedding(nn.Module):
    """z_c = s · cos(P f / ‖f‖ + b, t_c): features are projected to where the names of the classes
    are, and the nearest name is the answer (cf. Frome et al., NeurIPS 2013, "DeViSE", and Akata et
    al., TPAMI 2016, "Label-embedding for image classification"). A rare class has its place there
    from the beginning, and P is learned by all classes together.

    t_c: the unit vector of what `Classes.text` has of the class, minus the mean over all classes.
    It stays; with `correct`, a trained δ_c [E] that begins at 0 is added.
    """

    kind = "label_embedding"

    def __init__(self, width: int, text: np.ndarray, scale: float, correct: bool = False):
        super().__init__()
        self.projection = nn.Linear(width, text.shape[1])
        nn.init.zeros_(self.projection.bias)
        self.register_buffer("text", torch.tensor(centred(text), dtype=torch.float32))
        self.correction = nn.Parameter(torch.zeros(text.shape)) if correct else None
        self.register_buffer("scale", torch.tensor(float(scale)))

    @property
    def weight(self) -> torch.Tensor:
        """P, [E, D]."""
        return self.projection.weight

    @property
    def places(self) -> torch.Tensor:
        """Of the classes among the names, [K, E]."""
        return self.text if self.correction is None else self.text + self.correction

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):  # cosines need float32
            g = self.projection(F.normalize(features.float(), dim=1))  # [N, E]
            return self.scale * F.linear(F.normalize(g, dim=1), F.normalize(self.places, dim=1))

    def arrays(self) -> dict[str, torch.Tensor]:
        own = {"projection": self.weight.detach(), "bias": self.projection.bias.detach()}
        return own | {"text": self.places.detach(), "scale": self.scale}

    @torch.no_grad()
    def start_from(self, arrays: dict[str, torch.Tensor]) -> None:
        """projection [E, D] and bias [E] of an initialiser."""
        self.weight.copy_(arrays["projection"])
        self.projection.bias.copy_(arrays["bias"])


def build_head(
    kind: str, width: int, num_classes: int, scale: float, centres: int | None = None
) -> Linear | Cosine:
    """A fresh head. Linear weights start near zero: all classes begin equal. centres: of each
    class, of kind `subcentre`"""
    if kind == "subcentre":
        return SubCentre(width, num_classes, scale, centres)
    if kind == "cosine":
        return Cosine(width, num_classes, scale)
    head = Linear(width, num_classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


def class_head(model: Model, width: int, classes: Classes) -> Linear | Cosine | LabelEmbedding:
    """The fresh head that `model.head` asks for: what a network ends in."""
    if model.head == "label_embedding":
        return LabelEmbedding(width, classes.text, model.cosine_scale, model.correct_text)
    return build_head(model.head, width, classes.num, model.cosine_scale, model.centres)
