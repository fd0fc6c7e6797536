"""A toy network with two heads: one sees the whole image, one its centre, through one backbone.

z = (z_whole + z_centre) / 2 and L = L(z_whole, y) + L(z_centre, y).
"""

import torch
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.networks.base import Network, Output, mixed
from src.networks.heads import class_head


class TwoLooks(Network):
    def __init__(self, model: Model, backbone: nn.Module, classes: Classes):
        super().__init__()
        self.backbone, width = backbone, backbone.num_features
        self.whole = class_head(model, width, classes)
        self.centre = class_head(model, width, classes)

    def classifiers(self):
        width = self.backbone.num_features
        return {"whole": (self.whole, (0, width)), "centre": (self.centre, (width, 2 * width))}

    def forward(self, images: torch.Tensor) -> Output:
        whole, centre = self._features(images)
        logits = (self.whole(whole) + self.centre(centre)) / 2  # [N, K]
        return Output(logits, torch.cat([whole, centre], 1))  # features: [N, 2D]

    def loss(self, batch, criterion, progress):
        whole, centre = self._features(batch.images)
        looks = {"whole": self.whole(whole), "centre": self.centre(centre)}
        terms = {name: mixed(criterion, logits, batch) for name, logits in looks.items()}
        return terms, Output(sum(looks.values()) / 2, torch.cat([whole, centre], 1))

    def _features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = images.shape[2]
        inner = images[:, :, size // 4 : -(size // 4), size // 4 : -(size // 4)]
        return self.backbone(images), self.backbone(F.interpolate(inner, size=size))  # [N, D] each
