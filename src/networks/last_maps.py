"""The last two maps of a CNN: what its pooling sees, and what the block before gives."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from src.errors import UserError
from src.networks.backbone import stages
from src.networks.taps import FAILURES, without_storage


class LastMaps(NamedTuple):
    """before: name of the block whose output is the map before the last · grid: (h, w) of both"""

    before: str
    grid: tuple[int, int]


class Maps(NamedTuple):
    """features [N, D], pooled · last [N, D', h, w], what is pooled · before [N, D'', h, w]"""

    features: torch.Tensor
    last: torch.Tensor
    before: torch.Tensor


def find_last_maps(backbone: nn.Module, size: int) -> LastMaps:
    """Where the maps are, before any image of `size` pixels is read.

    The last map is the last block's, as in ResNets, or that of layers after it, as in EfficientNets
    with their 1 × 1 convolution; the other one is of the last block that does not make it, on the
    same grid. Errors: UserError for a backbone without such maps (a transformer, or a CNN whose
    blocks are not known or whose last stage is a single block), or an image size that is no whole
    number of cells.
    """
    shadow, found = without_storage(backbone), []
    for name, block in _blocks(shadow):
        block.register_forward_hook(lambda _, args, out, name=name: found.append((name, out)))
    try:
        last = shadow.forward_features(torch.empty(2, 3, size, size, device="meta"))
    except FAILURES as error:
        raise _no_maps(backbone, f"cannot take images of {size} x {size} pixels") from error
    if last.ndim != 4 or getattr(backbone, "output_fmt", "NCHW") != "NCHW":
        raise _no_maps(backbone, "ends in tokens; for vision transformers there is transfg")
    names = [name for name, out in found if out is not last and out.shape[2:] == last.shape[2:]]
    if not names:
        h, w = last.shape[2:]
        raise _no_maps(backbone, f"has no other block that is known on its last grid, {h} x {w}")
    _check_whole(size, last.shape[2], list(backbone.feature_info)[-1]["reduction"])
    return LastMaps(names[-1], tuple(last.shape[2:]))


def look(backbone: nn.Module, places: LastMaps, images: torch.Tensor) -> Maps:
    """One pass of images [N, 3, H, W], of any size."""
    seen: list[torch.Tensor] = []
    block = backbone.get_submodule(places.before)
    handle = block.register_forward_hook(lambda _, args, out: seen.append(out))
    try:
        last = backbone.forward_features(images)
    finally:
        handle.remove()
    return Maps(backbone.forward_head(last), last, seen[-1])


def _blocks(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those of all stages, with their names, in the order in which they run."""
    names = {module: name for name, module in backbone.named_modules()}
    for stage in stages(backbone):
        for block in getattr(stage, "blocks", stage).children():
            yield names[block], block


def _check_whole(size: int, cells: int, cell: int) -> None:
    """Where the last cell sticks out of the image, places on the map would be off."""
    if cell * cells != size:
        near = [n * cell for n in (size // cell, size // cell + 1) if n]
        raise UserError(
            f"model.image_size={size}: the last map has cells of {cell} pixels, of which {size} is "
            f"no whole number; the nearest sizes are {' and '.join(map(str, near))}"
        )


def _no_maps(backbone: nn.Module, why: str) -> UserError:
    return UserError(
        "model.network=mmal looks at the maps of the last two blocks of a CNN, and "
        f"{type(backbone).__name__} {why}. Take a ResNet, RegNet, ConvNeXt, EfficientNet or "
        "MobileNet of timm's or a CIFAR ResNet"
    )
