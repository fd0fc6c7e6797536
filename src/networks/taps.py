"""Where the last scales of a CNN end, and what comes out there, before any image is read."""

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import nn

from src.errors import UserError

FAILURES = (AssertionError, RuntimeError, ValueError)  # of a backbone that an image does not fit


class Taps(NamedTuple):
    """stages: names of the modules that end all scales but the last · shapes: [C, H, W] of the maps
    there, and of what `forward_features` returns · unused: names of the parameters after that ·
    stride: pixels of an image per pixel of the last map"""

    stages: list[str]
    shapes: list[tuple[int, int, int]]
    unused: list[str]
    stride: int


def last_scales(backbone: nn.Module, count: int, size: int, asked: str) -> Taps:
    """The last `count` scales, as timm's `feature_info` has them, for images of `size` pixels.

    Errors: UserError that begins with `asked`, for a backbone that is no CNN with such scales, or
    does not take such images.
    """
    info = list(getattr(backbone, "feature_info", []))[-count:]
    kind = type(backbone).__name__
    if len(info) < count or info[0]["reduction"] == info[-1]["reduction"]:
        raise UserError(
            f"{asked} needs a CNN with {count} scales of maps that timm knows (feature_info), and "
            f"{kind} has none; take a ResNet, an EfficientNet, a ConvNeXt or a DenseNet"
        )
    stages = [scale["module"] for scale in info[:-1]]
    shadow = without_storage(backbone)
    try:
        maps = run_to(shadow, stages, size)
    except FAILURES as error:
        raise UserError(
            f"{asked} with model.image_size={size}: {kind} does not take such images ({error})"
        ) from error
    shapes = [tuple(x.shape[1:]) if isinstance(x, torch.Tensor) else () for x in maps]
    channels = [scale["num_chs"] for scale in info[:-1]]
    if [shape[:1] for shape in shapes[:-1]] != [(c,) for c in channels] or len(shapes[-1]) != 3:
        raise UserError(
            f"{asked} needs stages that return one map [channels, height, width] each, here with "
            f"{channels} channels; those of {kind} return {shapes}"
        )
    maps[-1].sum().backward()
    unused = [name for name, p in shadow.named_parameters() if p.grad is None]
    return Taps(stages, shapes, unused, info[-1]["reduction"])


def without_storage(backbone: nn.Module) -> nn.Module:
    """A copy on torch's meta device: it tells shapes and where gradients go, in no time."""
    return deepcopy(backbone).to("meta")


def run_to(shadow: nn.Module, stages: list[str], size: int) -> list[torch.Tensor]:
    """What comes out of the stages and of `forward_features` for images of `size` pixels."""
    found: dict[str, torch.Tensor] = {}

    def kept_as(name: str):
        return lambda module, inputs, output: found.update({name: output})

    hooks = [shadow.get_submodule(s).register_forward_hook(kept_as(s)) for s in stages]
    try:
        last = shadow.forward_features(torch.zeros(2, 3, size, size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return [*(found[name] for name in stages), last]
