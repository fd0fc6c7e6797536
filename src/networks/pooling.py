"""Pooling: the last map of a backbone → features [N, D]. `model.pooling` chooses from the table.

Generalised-mean pooling, GeM (Radenović, Tolias, Chum: "Fine-tuning CNN image retrieval with no
human annotation", TPAMI 2018, eq. 3): of a channel x of h · w places,

    f = (1 / hw · Σ x^p)^(1/p)

p = 1 is the mean, p → ∞ the maximum. One p for all channels, which is learned; values below 1e-6
count as that. f grows in proportion to x, so x is divided by its largest value before and f
multiplied by it afterwards: x^p stays in range for any p, and the gradient is the same with that
value taken as a number.
"""

import torch
from timm.layers import SelectAdaptivePool2d
from torch import nn

from src.config.model import GeM as Settings
from src.errors import UserError

SMALLEST = 1e-6


class GeM(nn.Module):
    """map [N, D, h, w] → [N, D], or [N, D, 1, 1] without `flatten`; channels last: [N, h, w, D]."""

    def __init__(self, p: float, flatten: bool, channels_last: bool = False):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))  # one dimension, so without weight decay
        self.flatten, self.places = flatten, (1, 2) if channels_last else (2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):  # powers need float32
            x = x.float().clamp(min=SMALLEST)
            largest = x.detach().amax(self.places, keepdim=True)  # [N, D, 1, 1]
            mean = (x / largest).pow(self.p).mean(self.places, keepdim=True)
            pooled = largest * mean.pow(1 / self.p)
        return pooled.flatten(1) if self.flatten else pooled


def use_gem(settings: Settings, backbone: nn.Module, name: str) -> None:
    """Put GeM where `backbone` has its pooling. name: of the backbone.

    Errors: UserError when it has none, as vision transformers, or one that is none of a map.
    """
    found = [
        (place, module)
        for place, module in backbone.named_modules()
        if isinstance(module, SelectAdaptivePool2d) and module.feat_mult() == 1
    ]
    if len(found) != 1 or found[0][1].is_identity():
        raise UserError(
            f"model.pooling=gem replaces the pooling of a CNN's last map, and {name} has no such "
            "layer (vision transformers take a token or an average of tokens). Use a ResNet, "
            "EfficientNet, MobileNet, ConvNeXt or another CNN of timm's, or a CIFAR ResNet; or set "
            "model.pooling=backbone"
        )
    place, pool = found[0]
    nhwc = getattr(pool.pool, "dim", None) == (1, 2)
    flat = not isinstance(pool.flatten, nn.Identity) or getattr(pool.pool, "flatten", False)
    backbone.set_submodule(place, GeM(settings.p, flat, nhwc))


POOLINGS = {
    "backbone": lambda settings, backbone, name: None,
    "gem": use_gem,
}
