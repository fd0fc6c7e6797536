"""Anti-aliasing: a small blur before every second pixel is taken (Zhang, ICML 2019, section 3.2).

MaxPool(stride 2) → MaxPool(stride 1) · Blur(stride 2)
Conv(stride 2) · BN · ReLU → Conv(stride 1) · BN · ReLU · Blur(stride 2)

The blur is a depthwise convolution with a aᵀ / Σ, a a row of binomial coefficients: [1, 2, 1] or
[1, 4, 6, 4, 1], and reflected borders. It has no weights and its kernel stays out of checkpoints:
weights of the network without blur fit, and need fine-tuning. timm builds it into its own backbones
(`aa_layer`, which must be a class); the shortcuts of its ResNets are left as they are.
"""

from timm.layers import BlurPool2d
from torch import nn

from src.errors import UserError


class BlurPool5(BlurPool2d):
    """The wide kernel as a class of its own, as `aa_layer` takes no arguments."""

    def __init__(self, channels: int, stride: int = 2, **place):
        super().__init__(channels, 5, stride, **place)


BLUR = {3: BlurPool2d, 5: BlurPool5}  # even widths would change the sizes of feature maps


def check_blurred(backbone: nn.Module, name: str) -> None:
    """Errors: UserError when the backbone was built with `aa_layer` and has no blur in it."""
    if not any(isinstance(module, BlurPool2d) for module in backbone.modules()):
        raise no_place(name)


def no_place(name: str) -> UserError:
    return UserError(
        f"model.anti_alias: {name} has no place for a blur (timm's aa_layer). ResNets and their "
        "kin, EfficientNets and MobileNets have, and the CIFAR ResNets; or set "
        "model.anti_alias=false"
    )
