"""AdaptFormer (Chen et al., NeurIPS 2022), as LIFT uses it (Shi et al., ICML 2024): a bottleneck
beside the feed-forward network (FFN) of every block, in a body that is frozen.

    y = x + FFN(LN₂ x) + s Up(ReLU(Down(LN' x)))      x: tokens [N, T, D] after attention
    Down: D → r      Up: r → D      LN': a layer norm of its own      s: one number, learned, from 1

Up starts at zero, so that training begins with the pretrained body. r is 2^⌊log₂(K / (2 L))⌋ of K
classes and L blocks, and at least 1: what is added has about as many weights as the head.
"""

import math

import torch
from torch import nn

from src.artifacts.dataset import Classes
from src.config.tuning import AdaptFormer
from src.networks.tuning.blocks import ffn_norm, token_width, transformer_blocks


class Adapter(nn.Module):
    """x [N, T, D] → s Up(ReLU(Down(LN' x))) [N, T, D]"""

    def __init__(self, width: int, bottleneck: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.scale = nn.Parameter(torch.ones(1))
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        for start_at_zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start_at_zero)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.up(self.down(self.norm(x)).relu())


def adaptformer(section: AdaptFormer, backbone: nn.Module, classes: Classes) -> None:
    blocks = transformer_blocks(backbone, "model.tuning=adaptformer")
    bottleneck = section.bottleneck or default_bottleneck(classes.num, len(blocks))
    for block in blocks:
        block.adapter = Adapter(token_width(block), bottleneck)
        ffn_norm(block).register_forward_pre_hook(_remember)
        block.register_forward_hook(_add)


def default_bottleneck(classes: int, blocks: int) -> int:
    """r for K classes and L blocks."""
    return max(1, 2 ** math.floor(math.log2(classes / (2 * blocks))))


def _remember(norm: nn.Module, inputs: tuple) -> None:
    norm.entered = inputs[0]


def _add(block: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    norm = ffn_norm(block)
    x, norm.entered = norm.entered, None
    return output + block.adapter(x)
