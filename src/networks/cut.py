"""Where a backbone can be cut in two: a shared trunk, and what each branch has to itself."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import ResNet
from torch import nn
from torch.nn import functional as F

from src.errors import UserError
from src.networks.cifar_resnet import CifarResNet

Layer = Callable[[torch.Tensor], torch.Tensor]


class Cut(NamedTuple):
    """trunk: from images to the map at the cut · branch: names of the modules that follow, which
    run one after the other · pool: from the last map to features [N, D]"""

    trunk: list[Layer]
    branch: list[str]
    pool: Layer


def before_last_block(backbone: nn.Module) -> Cut:
    """A branch is the last residual block. Errors: as in `_parts`."""
    stem, stages, tail, pool, _ = _parts(backbone)
    last = backbone.get_submodule(stages[-1])
    whole = [backbone.get_submodule(name) for name in stages[:-1]]
    return Cut([*stem, *whole, *last[:-1]], [f"{stages[-1]}.{len(last) - 1}", *tail], pool)


def before_last_scales(backbone: nn.Module) -> Cut:
    """A branch is all stages with the two smallest sizes of feature maps: layer2 and layer3 of the
    CIFAR ResNets, layer3 and layer4 of timm's, strides 16 and 32 of EfficientNets. Errors: as in
    `_parts`."""
    stem, stages, tail, pool, own = _parts(backbone)
    shared = [backbone.get_submodule(name) for name in stages[:-own]]
    return Cut([*stem, *shared], [*stages[-own:], *tail], pool)


def copied(state: dict[str, torch.Tensor], branch: list[str], to: str) -> dict[str, torch.Tensor]:
    """The branch's weights in the `state` of a plain network, under the names that they have in an
    nn.Sequential `to` of copies of its modules."""
    return {
        f"{to}.{i}.{key.removeprefix(f'backbone.{name}.')}": tensor
        for i, name in enumerate(branch)
        for key, tensor in state.items()
        if key.startswith(f"backbone.{name}.")
    }


class _Parts(NamedTuple):
    """stages and tail: names · own: how many stages have the two smallest sizes of maps"""

    stem: list[Layer]
    stages: list[str]
    tail: list[str]
    pool: Layer
    own: int


def _parts(backbone: nn.Module) -> _Parts:
    """Errors: UserError for a backbone that is no ResNet, EfficientNet or MobileNetV2 of timm's,
    and no CIFAR ResNet."""
    b = backbone
    if isinstance(b, CifarResNet):
        stages = ["layer1", "layer2", "layer3"]
        return _Parts([b.conv1, b.bn1, F.relu], stages, [], b.forward_head, 2)
    if isinstance(b, ResNet):
        stages = ["layer1", "layer2", "layer3", "layer4"]
        pool = partial(b.forward_head, pre_logits=True)
        return _Parts([b.conv1, b.bn1, b.act1, b.maxpool], stages, [], pool, 2)
    if isinstance(b, EfficientNet):  # MobileNetV2 is one
        stages = [f"blocks.{i}" for i in range(len(b.blocks))]
        ends = [scale["module"] for scale in b.feature_info]  # the last stage of each scale
        own = len(stages) - 1 - stages.index(ends[-3])
        pool = partial(b.forward_head, pre_logits=True)
        return _Parts([b.conv_stem, b.bn1], stages, ["conv_head", "bn2"], pool, own)
    raise UserError(
        "model.network=bbn and ride cut a backbone in two and know where in timm's ResNets, "
        "EfficientNets and MobileNetV2 and in the CIFAR ResNets; "
        f"{type(backbone).__name__} is none of them"
    )
