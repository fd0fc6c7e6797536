"""One backbone, one head."""

import torch
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.networks.backbone import stages
from src.networks.base import Network, Output
from src.networks.heads import class_head


class Plain(Network):
    """images → pooled features [N, D] → dropout → head → logits [N, K]"""

    def __init__(self, model: Model, backbone: nn.Module, classes: Classes):
        super().__init__()
        self.backbone = backbone
        self.dropout = model.dropout
        self.classifier = class_head(model, backbone.num_features, classes.num)

    def mix_points(self) -> list[nn.Module]:
        return stages(self.backbone)

    def forward(self, images: torch.Tensor) -> Output:
        features = self.backbone(images)
        return Output(self.classifier(self.dropped(features)), features)

    def dropped(self, features: torch.Tensor) -> torch.Tensor:
        """What a head sees of the features while training."""
        return F.dropout(features, self.dropout, self.training)
