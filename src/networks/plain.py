"""One backbone, one head, and a neck between them if the config asks for one."""

import torch
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.networks.backbone import stages
from src.networks.base import Network, Output
from src.networks.heads import class_head
from src.networks.neck import build_neck
from src.networks.tuning.prefix import Prefix


class Plain(Network):
    """images → pooled features, or what a neck makes of them, [N, D] → dropout → head → logits
    [N, K]"""

    prefix: Prefix | None = None  # where tokens are kept in the place of images

    def __init__(self, model: Model, backbone: nn.Module, classes: Classes):
        super().__init__()
        self.backbone = backbone
        self.dropout = model.dropout
        self.neck, width = build_neck(model.neck, backbone.num_features)
        self.classifier = class_head(model, width, classes)

    def mix_points(self) -> list[nn.Module]:
        return stages(self.backbone)

    def forward(self, images: torch.Tensor) -> Output:
        features = self.embed(images)
        return Output(self.classifier(self.dropped(features)), features)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """images [N, 3, H, W], or the tokens [N, T, D] of a frozen prefix → features [N, D]"""
        if images.ndim == 3:
            return self.neck(self.prefix.rest(self.backbone, images))
        return self.neck(self.backbone(images))

    def dropped(self, features: torch.Tensor) -> torch.Tensor:
        """What a head sees of the features while training."""
        return F.dropout(features, self.dropout, self.training)
