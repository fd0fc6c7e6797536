"""A toy network: an image and its mirror have one set of features, the mean of both."""

import torch

from src.networks.base import Output
from src.networks.plain import Plain


class Mirror(Plain):
    def forward(self, images: torch.Tensor) -> Output:
        features = (self.backbone(images) + self.backbone(images.flip(3))) / 2  # [N, D]
        return Output(self.classifier(self.dropped(features)), features)
