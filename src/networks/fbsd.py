"""FBSD (Song and Yang, arXiv 2103.02782, "Feature Boosting, Suppression, and Diversification for
Fine-Grained Visual Classification").

A CNN is made to look elsewhere once it has found something. After each of its last three scales,
FBSM (stripes.py) finds the stripe of the map that matters most; the boosted map X_b goes to a head
of that scale, and the next scale sees the map with that stripe suppressed. FDM (diversify.py) then
gives the heads' maps what is unlike them in each other:

    P_j = ReLU BN conv3×3 ReLU BN conv1×1 (X_b,j)        [N, 1024, S_j], j = 3, 4, 5
    p_j = mean of the 5 largest of each channel of P_j'  [N, 1024]
    f_j = ELU BN (V BN p_j)                              [N, 512], and f_c from [p_3 p_4 p_5]
    z_j = W_j f_j + b_j                                  [N, K]
    L   = 2 (L(z_3, y) + L(z_4, y) + L(z_5, y)) + L(z_c, y)
    z   = (z_3 + z_4 + z_5 + z_c) / 4

Features are [f_3 f_4 f_5 f_c], so that each z_j is a linear head on a slice of them. The authors
predict by the sum, which is the same prediction; the mean has the scale of one classifier, and the
class prior once instead of four times, which 04 relies on when it takes the prior out.
"""

from itertools import count, takewhile

import torch
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.config.networks import FBSD as Settings
from src.data.dataset import Batch
from src.errors import UserError
from src.networks.backbone import stages
from src.networks.base import Evidence, Network, Output, Progress, mixed
from src.networks.diversify import diversify, top_mean
from src.networks.heads import class_head
from src.networks.stripes import FBSM
from src.networks.taps import FAILURES, Taps, last_scales, run_to, without_storage

ASKED = "model.network=fbsd"
FAR = 9  # strides: how far from model.image_size another one is looked for


class FBSD(Network):
    """On any CNN of timm's with three scales of maps in its `feature_info`, and the CIFAR ResNets.

    The backbone's modules keep their names; those behind its last map, as ConvNeXt's last norm, are
    taken out: no gradient would reach them. Errors: UserError for another backbone, and for image
    sizes whose maps cannot be cut into the stripes.
    """

    def __init__(self, model: Model, backbone: nn.Module, classes: Classes):
        super().__init__()
        self.settings, self.dropout = model.network, model.dropout
        settings, size = model.network, model.image_size
        taps = last_scales(backbone, len(settings.stripes), size, ASKED)
        check_stripes(backbone, taps, settings, size)
        for name in {name.rpartition(".")[0] for name in taps.unused}:
            backbone.set_submodule(name, nn.Identity())
        self.backbone, self.first_tap = backbone, taps.stages[0]
        channels = [shape[0] for shape in taps.shapes]
        self.stripes = nn.ModuleList(
            FBSM(c, k, settings.alpha, settings.beta)
            for c, k in zip(channels, settings.stripes, strict=True)
        )
        for name, fbsm in zip(taps.stages, self.stripes, strict=False):
            backbone.get_submodule(name).register_forward_hook(fbsm.between_stages)
        squeezed, wide, hidden = settings.widths
        self.maps = nn.ModuleList(head_map(c, squeezed, wide) for c in channels)
        inputs = [wide] * len(channels) + [wide * len(channels)]
        self.embed = nn.ModuleList(embedding(width, hidden) for width in inputs)
        self.classifier = nn.ModuleDict(
            (name, class_head(model, hidden, classes)) for name in settings.branches
        )

    def forward(self, images: torch.Tensor) -> Output:
        """features: [N, 4 · 512]"""
        features = self._features(images)
        return Output(self._mean(self._each(features)), torch.cat(features, 1))

    def loss(
        self, batch: Batch, criterion: nn.Module, progress: Progress
    ) -> tuple[dict[str, torch.Tensor], Output]:
        """One term per head. Errors: UserError for a batch of one image."""
        features = self._features(batch.images)
        logits = self._each(features)
        weights = {name: 1.0 if name == "concat" else 2.0 for name in logits}
        terms = {name: weights[name] * mixed(criterion, z, batch) for name, z in logits.items()}
        return terms, Output(self._mean(logits), torch.cat(features, 1))

    def classifiers(self) -> dict[str, tuple[nn.Module, tuple[int, int] | None]]:
        width = self.settings.widths[-1]
        ends = count(width, width)
        return {
            name: (head, (end - width, end))
            for (name, head), end in zip(self.classifier.items(), ends, strict=False)
        }

    def mix_points(self) -> list[nn.Module]:
        """Up to the first suppression: all heads must see the same mixture."""
        found = stages(self.backbone)
        tapped = set(self.backbone.get_submodule(self.first_tap).modules())
        before = list(takewhile(lambda stage: tapped.isdisjoint(stage.modules()), found))
        return found[: len(before) + 1] if len(before) < len(found) else []

    def evidence(self, images: torch.Tensor) -> Evidence:
        """Per scale: boost_…, B_i of each stripe, and suppress_…, how much of it is taken away."""
        shares = [share for _, share in self._boosted(images)]
        maps = {}
        for name, fbsm, share in zip(self.classifier, self.stripes, shares, strict=False):
            maps[f"boost_{name}"] = share[:, :, None]  # [N, k, 1]
            maps[f"suppress_{name}"] = 1 - fbsm.suppression(share)[:, :, None]
        return Evidence(maps=maps)

    def _boosted(self, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """X_b [N, C, H, W] and B [N, k] of each scale."""
        *earlier, final = self.stripes
        last = self.backbone.forward_features(images)
        boosted, _, share = final(last)
        return [*(fbsm.taken() for fbsm in earlier), (boosted, share)]

    def _features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """f_3, f_4, f_5, f_c, [N, 512] each."""
        norms = [m for m in self.embed.modules() if isinstance(m, nn.BatchNorm1d)]
        if len(images) == 1 and any(norm.training for norm in norms):
            raise UserError(
                f"{ASKED} normalises pooled features over a batch and trains on two images or more "
                "per forward pass; raise train.micro_batch, or lower model.image_size if memory "
                "does not allow it"
            )
        boosted = [x for x, _ in self._boosted(images)]
        maps = [head(x).flatten(2) for head, x in zip(self.maps, boosted, strict=True)]
        settings = self.settings
        diverse = diversify(maps, settings.gamma, gradient=settings.diversity_gradient)
        pooled = [top_mean(x, settings.top) for x in diverse]
        inputs = [*pooled, torch.cat(pooled, 1)]
        return [embed(x) for embed, x in zip(self.embed, inputs, strict=True)]

    def _each(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Logits [N, K] in float32 by the heads' names."""
        dropped = [F.dropout(f, self.dropout, self.training) for f in features]
        pairs = zip(self.classifier.items(), dropped, strict=True)
        return {name: head(f).float() for (name, head), f in pairs}

    @staticmethod
    def _mean(logits: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(logits.values())).mean(0)


def head_map(channels: int, squeezed: int, wide: int) -> nn.Sequential:
    """X_b [N, C, H, W] → P [N, 1024, H, W]"""
    return nn.Sequential(
        nn.Conv2d(channels, squeezed, 1, bias=False),
        nn.BatchNorm2d(squeezed, momentum=0.01),
        nn.ReLU(),
        nn.Conv2d(squeezed, wide, 3, padding=1, bias=False),
        nn.BatchNorm2d(wide, momentum=0.01),
        nn.ReLU(),
    )


def embedding(width: int, hidden: int) -> nn.Sequential:
    """Pooled [N, width] → what a classifier sees, [N, 512]"""
    return nn.Sequential(
        nn.BatchNorm1d(width), nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ELU()
    )


def check_stripes(backbone: nn.Module, taps: Taps, settings: Settings, size: int) -> None:
    """Errors: UserError that names the nearest image sizes whose maps can be cut."""
    heights = [shape[1] for shape in taps.shapes]
    if _cut(heights, settings.stripes):
        return
    shadow, step = without_storage(backbone), taps.stride

    def works(other: int) -> bool:
        try:
            return _cut([x.shape[2] for x in run_to(shadow, taps.stages, other)], settings.stripes)
        except FAILURES:
            return False

    below = range((size - 1) // step * step, 0, -step)
    above = range((size // step + 1) * step, size + FAR * step, step)
    near = [next(filter(works, sizes), None) for sizes in (below[:FAR], above)]
    found = " and ".join(str(other) for other in near if other)
    hint = f"; the nearest multiples of {step} with which it works: {found}" if found else ""
    raise UserError(
        f"model.image_size={size}: {ASKED} cuts maps into {list(settings.stripes)} stripes of "
        f"equal height, and theirs are {heights} pixels high{hint}. Set model.image_size, or "
        "model.network.stripes to divisors of these heights"
    )


def _cut(heights: list[int], stripes: tuple[int, ...]) -> bool:
    return all(h % k == 0 for h, k in zip(heights, stripes, strict=True))
