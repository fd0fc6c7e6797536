"""Visual prompts (Jia et al., ECCV 2022, "Visual Prompt Tuning"): tokens that are learned.

x_l: the class token and registers · E_l: the patches, after block l of 1 … L · P: n tokens [n, D]

    shallow   [x_l, P_l, E_l] = B_l([x_{l−1}, P_{l−1}, E_{l−1}])      P_0 = P
    deep      [x_l, _, E_l] = B_l([x_{l−1}, P^l, E_{l−1}])            a P of its own for each block

Their place is after the class token and the registers and before the patches, and with rotary
embeddings they have no position, as these. After the last block they are taken out again, so that
norm, pooling and everything after it see what they see without prompts.

P starts uniform within ± √(6 / (3 p² + D)) for patches of p × p pixels, as the authors' does.
"""

import torch
from torch import nn

from src.artifacts.dataset import Classes
from src.config.tuning import Prompts
from src.networks.tuning.blocks import (
    patch_pixels,
    prefix_tokens,
    token_width,
    transformer_blocks,
)


def prompts(section: Prompts, backbone: nn.Module, classes: Classes) -> None:
    """Errors: UserError for a backbone that is no vision transformer."""
    blocks = transformer_blocks(backbone, "model.tuning=prompts")
    start = prefix_tokens(backbone)
    for block in blocks:
        block.prompt_span = slice(start, start + section.number)
        if hasattr(block.attn, "num_prefix_tokens"):  # tokens that have no rotary embedding
            block.attn.num_prefix_tokens += section.number
    bound = (6 / (3 * patch_pixels(backbone) + token_width(blocks[0]))) ** 0.5
    for block in blocks if section.deep else blocks[:1]:
        first = torch.empty(section.number, token_width(block)).uniform_(-bound, bound)
        block.prompts = nn.Parameter(first)
        block.register_forward_pre_hook(_put_in)
    for block in blocks if section.deep else blocks[-1:]:
        block.register_forward_hook(_take_out)


def _put_in(block: nn.Module, inputs: tuple) -> tuple:
    """[N, T, D] → [N, T + n, D]"""
    x, start = inputs[0], block.prompt_span.start
    added = block.prompts.to(x.dtype).expand(len(x), -1, -1)
    return torch.cat([x[:, :start], added, x[:, start:]], 1), *inputs[1:]


def _take_out(block: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    """[N, T + n, D] → [N, T, D]"""
    span = block.prompt_span
    return torch.cat([output[:, : span.start], output[:, span.stop :]], 1)
