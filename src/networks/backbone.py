"""Names → modules from images [N, 3, H, W] to pooled features [N, D]."""

import difflib

import timm
from timm.layers import DropPath
from torch import nn

from src.artifacts.hub import hub_or_cache
from src.config.model import Model
from src.data.transforms import Preprocessing
from src.errors import UserError, shortened
from src.networks.anti_alias import BLUR, check_blurred, no_place
from src.networks.cifar_resnet import DEPTHS, CifarResNet
from src.networks.clip_towers import check_tag, image_tower, is_open_clip
from src.networks.on_disk import instead_of_hub
from src.networks.pooling import POOLINGS

CIFAR_CFG = {
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
    "interpolation": "bilinear",
}


def build_backbone(model: Model, *, pretrained: bool, width: float = 1.0) -> nn.Module:
    """A timm model without classifier, an image tower of open_clip, or a CIFAR ResNet. `pretrained`
    fetches timm's weights.

    width: share of the channels of a CIFAR ResNet's later stages. Errors: UserError for an unknown
    name (with the nearest one), arguments the model does not take, weights that can't be fetched,
    or a pooling that cannot be put in.
    """
    backbone = _with_its_own_pooling(model, pretrained, width)
    POOLINGS[model.pooling.name](model.pooling, backbone, model.backbone)
    return backbone


def _with_its_own_pooling(model: Model, pretrained: bool, width: float) -> nn.Module:
    if is_open_clip(model.backbone):
        if pretrained:  # the weights come as from a file, see origins.py
            check_tag(model)
        return image_tower(model)
    blur = BLUR[model.blur_kernel] if model.anti_alias else None
    if model.backbone in DEPTHS:
        if model.kwargs or model.drop_path or pretrained:
            raise UserError(
                f"model.backbone={model.backbone} takes no kwargs and no drop_path, and has no "
                "weights on the hub; set model.pretrained=false"
            )
        return CifarResNet(DEPTHS[model.backbone], blur, width)
    if not timm.is_model(model.backbone):
        known = timm.list_models() + list(DEPTHS)
        near = difflib.get_close_matches(model.backbone.split(".")[0], known, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"model.backbone: timm has no model {model.backbone!r}{hint}")
    if width != 1:
        raise UserError(
            f"model.network.width={width}: timm builds {model.backbone} with all of its channels; "
            "set model.network.width=1, or take a CIFAR ResNet"
        )
    kwargs = dict(model.kwargs)
    if model.drop_path:
        kwargs["drop_path_rate"] = model.drop_path
    if blur is not None:
        kwargs["aa_layer"] = blur
    if pretrained:
        hub_or_cache()
    try:
        backbone = timm.create_model(model.backbone, pretrained=pretrained, num_classes=0, **kwargs)
    except TypeError as error:
        if "aa_layer" in str(error):
            raise no_place(model.backbone) from error
        if "drop_path_rate" in str(error):
            raise _skips_nothing(model) from error
        raise UserError(f"model.kwargs: {model.backbone} does not take them: {error}") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"model.pretrained: the weights of {model.backbone} could not be fetched from the hub "
            f"({shortened(str(error))}). {instead_of_hub(model.backbone)}"
        ) from error
    if blur is not None:
        check_blurred(backbone, model.backbone)
    if model.drop_path and not any(isinstance(m, DropPath) for m in backbone.modules()):
        raise _skips_nothing(model)
    # D of what it gives: later MobileNets have a layer after the pooling
    backbone.num_features = getattr(backbone, "head_hidden_size", backbone.num_features)
    return backbone


def _skips_nothing(model: Model) -> UserError:
    return UserError(
        f"model.drop_path={model.drop_path}: {model.backbone} has no blocks that it could skip; "
        "remove it, or choose another model.backbone"
    )


def stages(backbone: nn.Module) -> list[nn.Module]:
    """The stages (of a transformer: the blocks) that run one after the other; [] if unknown."""
    inner = getattr(backbone, "transformer", backbone)  # of open_clip's image towers
    for name in ("stages", "blocks", "layers", "resblocks"):
        found = getattr(inner, name, None)
        if isinstance(found, nn.Sequential | nn.ModuleList):
            return list(found)
    names = [f"{name}{i}" for name in ("layer", "s") for i in range(1, 5)]  # s: of RegNets
    layers = (getattr(backbone, name, None) for name in names)
    return [layer for layer in layers if isinstance(layer, nn.Module)]


def preprocessing(model: Model, backbone: nn.Module) -> Preprocessing:
    """From the config, and where it is silent from what the backbone was pretrained with."""
    cfg = getattr(backbone, "pretrained_cfg", CIFAR_CFG)
    return Preprocessing(
        size=model.image_size,
        crop_pct=model.crop_pct,
        interpolation=model.interpolation or cfg["interpolation"],
        mean=tuple(model.mean or cfg["mean"]),
        std=tuple(model.std or cfg["std"]),
        resize=model.resize,
    )
