"""Tuning that adds nothing: some of the body's own parameters train, all others are frozen.

bias          every b of W x + b and of a norm (BitFit, Ben Zaken et al., ACL 2022)
layer_norm    weight and bias of every layer norm (Kim et al., 2021; Basu et al., AAAI 2024)
last_blocks   the last k blocks of a transformer, or stages of a CNN, and what comes after them
"""

from timm.layers import RmsNorm
from torch import nn

from src.artifacts.dataset import Classes
from src.config.tuning import Bias, LastBlocks, LayerNorm
from src.errors import UserError
from src.networks.batchnorm import LAYERS
from src.networks.tuning.blocks import blocks_of


def bias(section: Bias, backbone: nn.Module, classes: Classes) -> None:
    """Errors: UserError for a backbone with batch norm, whose statistics would move, too."""
    if any(isinstance(module, LAYERS) for module in backbone.modules()):
        raise UserError(
            f"model.tuning=bias: {type(backbone).__name__} has batch norm, whose statistics would "
            "move as well as its biases; choose a vision transformer, or model.tuning=last_blocks"
        )
    for name, parameter in backbone.named_parameters():
        if name.endswith("bias"):  # q_bias and in_proj_bias, too
            parameter.requires_grad_(True)


def layer_norm(section: LayerNorm, backbone: nn.Module, classes: Classes) -> None:
    """Errors: UserError for a backbone without layer norm."""
    layers = [m for m in backbone.modules() if isinstance(m, nn.LayerNorm | RmsNorm)]
    if not layers:
        batchnorm = any(isinstance(module, LAYERS) for module in backbone.modules())
        raise UserError(
            f"model.tuning=layer_norm: {type(backbone).__name__} has no layer norm"
            f"{' but batch norm' if batchnorm else ''}; choose a vision transformer or a ConvNeXt, "
            "or model.tuning=last_blocks"
        )
    for layer in layers:
        layer.requires_grad_(True)


def last_blocks(section: LastBlocks, backbone: nn.Module, classes: Classes) -> None:
    """What comes after the blocks is what a backbone registers after them: norms, pooling.

    Errors: UserError for more blocks than there are.
    """
    blocks = blocks_of(backbone)
    if section.blocks > len(blocks):
        raise UserError(
            f"model.tuning.blocks={section.blocks}: {type(backbone).__name__} has {len(blocks)} "
            "blocks or stages; lower it, or remove model.tuning to train the whole body"
        )
    names = [name for name, _ in backbone.named_parameters()]
    inside = {id(p) for p in blocks[-section.blocks].parameters()}
    first = next(i for i, p in enumerate(backbone.parameters()) if id(p) in inside)
    for name in names[first:]:
        backbone.get_parameter(name).requires_grad_(True)
