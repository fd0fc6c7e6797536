"""Names → networks, one file each; `model.network` chooses from the table below."""

from contextlib import suppress

import torch
from torch import nn

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.config.schedules import Resizing
from src.data.transforms import Preprocessing
from src.errors import UserError
from src.networks.backbone import build_backbone, preprocessing
from src.networks.base import Network
from src.networks.bbn import BBN
from src.networks.clip import CLIP
from src.networks.fbsd import FBSD
from src.networks.kt import KnowledgeTransfer
from src.networks.mmal import MMAL
from src.networks.paco import PaCo
from src.networks.plain import Plain
from src.networks.ride import RIDE
from src.networks.task_separator import TaskSeparator
from src.networks.transfg import TransFG
from src.networks.tuning import tune

NETWORKS = {
    "plain": Plain,
    "bbn": BBN,
    "kt": KnowledgeTransfer,
    "paco": PaCo,
    "task_separator": TaskSeparator,
    "ride": RIDE,
    "transfg": TransFG,
    "fbsd": FBSD,
    "mmal": MMAL,
    "clip": CLIP,
}


def build_network(
    model: Model, classes: Classes, *, pretrained: bool = False
) -> tuple[Network, Preprocessing]:
    """A network with fresh weights (or timm's, if `pretrained`), and what it expects of images.

    Errors: UserError, before any weights are fetched, for a backbone that the network can't use.
    """
    if pretrained:
        blank_network(model, classes)  # for what it has to say of its backbone
    backbone = build_backbone(model, pretrained=pretrained)
    return _made(model, backbone, classes), preprocessing(model, backbone)


def _made(model: Model, backbone: nn.Module, classes: Classes) -> Network:
    """Tuned last: a network may make parameters of its body anew."""
    network: Network = NETWORKS[model.network.name](model, backbone, classes)
    network.text_width = 0 if classes.text is None else classes.text.shape[1]
    if model.tuning is not None:
        tune(model.tuning, network.backbone, classes)
    return network


def blank_network(model: Model, classes: Classes) -> Network | None:
    """The network without memory for weights. None where something in it cannot be built that way:
    what is wrong with it, the network itself says later. Errors: as `build_network`."""
    with suppress(NotImplementedError, RuntimeError), torch.device("meta"):
        backbone = build_backbone(model, pretrained=False)
        return _made(model, backbone, classes)
    return None


def check_image_size(network: Network, model: Model) -> None:
    """Errors: UserError when the network cannot take images of `model.image_size`, before any
    image is read."""
    size = model.image_size
    if error := _refusal(network, size):
        raise UserError(
            f"model.image_size={size}: {model.backbone} does not take images of {size} x {size} "
            f"pixels ({error}). Choose the size it was made for, or, for a vision transformer, set "
            f"model.kwargs.img_size={size}."
        ) from error


def check_resizing(
    network: Network, model: Model, classes: Classes, steps: tuple[Resizing, ...]
) -> None:
    """Errors: UserError when the network cannot take images of every size of `train.resizing`:
    one that was made for that size could not, or this one, which is made for model.image_size."""
    for size in (step.size for step in steps):
        try:
            blank_network(model.model_copy(update={"image_size": size}), classes)
        except UserError as error:
            raise UserError(f"train.resizing, {size} pixels: {error}") from error
        if error := _refusal(network, size):
            raise UserError(
                f"train.resizing: {model.backbone} with model.network={model.network.name} does "
                f"not take images of {size} x {size} pixels after it was made for "
                f"{model.image_size} ({error}). Choose another size, or a network that takes any; "
                "a plain vision transformer does with model.kwargs.dynamic_img_size=true"
            ) from error


@torch.inference_mode()
def _refusal(network: Network, size: int) -> Exception | None:
    try:
        network.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        return error
    finally:
        network.train()
    return None
