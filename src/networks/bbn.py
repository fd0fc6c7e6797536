"""Bilateral-branch network (Zhou et al., CVPR 2020): one branch learns from images as they are, one
from rare classes above all, and training moves from the first to the second.

The last residual block is there twice; everything below is shared. x_c comes from `train.sampler`,
x_r from `train.second_sampler` (the paper's is `reversed`). f_c, f_r are the pooled features
[N, D] of the two branches, W: [K, 2D], b: [K].

    α_T = 1 − ((T − 1) / T_max)²                  T = 1, 2, … the epoch (cumulative learning)
    z   = W [2α f_c(x_c) ; 2(1 − α) f_r(x_r)] + b
    L   = α L(z, y_c) + (1 − α) L(z, y_r)

Inference is z = W [f_c(x) ; f_r(x)] + b, what training computes at α = 0.5. The trunk sees the two
batches one after the other, as in the authors' code, so that batch norm never mixes them.
"""

from copy import deepcopy

import torch
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.config.networks import BBN as Settings
from src.data.dataset import Batch
from src.networks.base import Body, Network, Output, Progress
from src.networks.cut import before_last_block, copied
from src.networks.heads import class_head


def alpha(settings: Settings, progress: Progress) -> float:
    """α of an epoch; 0 from the end of T_max on."""
    if settings.alpha != "decay":
        return settings.alpha
    passed = progress.epoch / (settings.t_max or progress.epochs)
    return 1 - min(passed, 1) ** 2


class BBN(Network):
    """The conventional branch is the backbone's own end; the other begins as a copy of it."""

    def __init__(self, model: Model, backbone: nn.Module, classes: Classes):
        super().__init__()
        self.settings, self.dropout = model.network, model.dropout
        self.backbone = backbone
        own = [backbone.get_submodule(name) for name in before_last_block(backbone).branch]
        self.rebalancing = deepcopy(nn.Sequential(*own))
        self.classifier = class_head(model, 2 * backbone.num_features, classes)

    def forward(self, images: torch.Tensor) -> Output:
        """features: [N, 2D], those of both branches."""
        shared = self._trunk(images)
        features = torch.cat([self._conventional(shared), self._rebalancing(shared)], 1)
        return Output(self._classify(features), features)

    def loss(
        self, batch: Batch, criterion: nn.Module, progress: Progress
    ) -> tuple[dict[str, torch.Tensor], Output]:
        """One term per branch. In the features returned, f_c is of `batch.images` and f_r of
        `batch.other.images`."""
        a = alpha(self.settings, progress)
        f_c = self._conventional(self._trunk(batch.images))
        f_r = self._rebalancing(self._trunk(batch.other.images))
        logits = self._classify(torch.cat([2 * a * f_c, 2 * (1 - a) * f_r], 1)).float()
        terms = {
            "conventional": a * criterion(logits, batch.labels),
            "rebalancing": (1 - a) * criterion(logits, batch.other.labels),
        }
        return terms, Output(logits, torch.cat([f_c, f_r], 1))

    def bodies(self) -> list[Body]:
        """The copy is of one block, which is no layers for layer decay to tell apart."""
        return [Body(self.backbone), Body(self.rebalancing, layered=False)]

    def adopt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The last block of a plain network goes into both branches."""
        if any(key.startswith("rebalancing.") for key in state):
            return state
        return state | copied(state, before_last_block(self.backbone).branch, "rebalancing")

    @staticmethod
    def plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The conventional branch and the classifier as it is at α = 1, z = 2 W_c f_c + b."""
        if "classifier.weight" not in state:  # a head of another kind is no sum of two halves
            return {k: v for k, v in state.items() if not k.startswith("classifier.")}
        weight = state["classifier.weight"]
        return state | {"classifier.weight": 2 * weight[..., : weight.shape[-1] // 2]}

    def _trunk(self, images: torch.Tensor) -> torch.Tensor:
        for step in before_last_block(self.backbone).trunk:
            images = step(images)
        return images

    def _conventional(self, shared: torch.Tensor) -> torch.Tensor:
        parts = before_last_block(self.backbone)
        for name in parts.branch:
            shared = self.backbone.get_submodule(name)(shared)
        return parts.pool(shared)

    def _rebalancing(self, shared: torch.Tensor) -> torch.Tensor:
        return before_last_block(self.backbone).pool(self.rebalancing(shared))

    def _classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.dropout(features, self.dropout, self.training))
