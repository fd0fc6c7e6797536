"""Networks: images → logits. One file each; `model.network` chooses from the table below."""

from src.networks.backbone import build_backbone, preprocessing
from src.networks.base import Network
from src.networks.plain import Plain
from src.schema import Model

NETWORKS = {"plain": Plain}


def build_network(model: Model, num_classes: int, *, pretrained: bool = False):
    """A network with fresh weights (or timm's, if `pretrained`) and its `Preprocessing`."""
    backbone = build_backbone(model, pretrained=pretrained)
    network: Network = NETWORKS[model.network](model, backbone, num_classes)
    return network, preprocessing(model, backbone)
