"""Attention rollout: how much of the class token comes from each patch, over several blocks of a
vision transformer (Abnar and Zuidema, ACL 2020, in the form of TransFG, He et al., AAAI 2022).

A_l: [heads, T, T], softmax(q kᵀ / √d) of block l of 1 … L, each row sums to 1 · T: tokens, the
class token first, then other prefix tokens (registers), then the patches row by row.

    R = A_L A_{L−1} … A_1        per head, with no identity for the residual and no renormalising
    r = R[0, :] = ((A_L[0, :] A_{L−1}) A_{L−2}) … A_1

r is all that is used, and one row times a matrix is T² where a product of matrices is T³. It needs
the upper blocks first, so that what enters each block, [N, T, D], is kept on the way up and each
map is made again on the way down, `ROWS` of its rows at a time: memory grows with L by T · D, never
by T².
"""

from collections.abc import Sequence

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

ROWS = 128  # of a map at once: with heads of width 64 half of what the MLP of a block keeps


def no_rollout(backbone: nn.Module) -> str | None:
    """Why a backbone has no class row; None: it has one."""
    name = type(backbone).__name__
    if not isinstance(backbone, VisionTransformer):
        return f"{name} is none of timm's VisionTransformer"
    if not backbone.has_class_token:
        return "it has no class token"
    for block in backbone.blocks:
        for part, kind in ((block, Block), (getattr(block, "attn", None), Attention)):
            if type(part) is not kind:
                return (
                    f"a part of it is {type(part).__name__}, where timm's {kind.__name__} is known"
                )
    return None


def embedded(backbone: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """Images [N, 3, H, W] → the tokens [N, T, D] that enter the first block."""
    tokens = backbone._pos_embed(backbone.patch_embed(images))  # timm has no public name for it
    return backbone.norm_pre(backbone.patch_drop(tokens))


def class_rollout(backbone: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """r of images [N, 3, H, W] over all blocks, patches alone: [N, heads, patches]."""
    with torch.no_grad():
        tokens, entered = embedded(backbone, images), []
        for block in backbone.blocks:
            entered.append(tokens)
            tokens = block(tokens)
        return class_row(backbone.blocks, entered)[..., backbone.num_prefix_tokens :]


@torch.no_grad()
def class_row(blocks: Sequence[Block], entered: Sequence[torch.Tensor]) -> torch.Tensor:
    """r over `blocks`: [N, heads, T], for all tokens, prefix included.

    entered: what enters each block, [N, T, D]. In the precision of the weights, whatever autocast
    says: rows of attention decide. Dropout of attention is left out.
    """
    dtype = next(blocks[0].parameters()).dtype
    with torch.autocast(entered[0].device.type, enabled=False):
        row = entered[0].new_ones(1, 1, 1, dtype=dtype)  # the class token looks at itself
        for block, tokens in zip(reversed(blocks), reversed(entered), strict=True):
            row = _through(row, *_queries_keys(block, tokens.to(dtype)))
    return row


def _queries_keys(block: Block, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q / √d and k of each head, [N, heads, T, d] each."""
    attention = block.attn
    parts = attention.qkv(block.norm1(tokens))  # [N, T, 3 · heads · d]
    parts = parts.unflatten(2, (3, attention.num_heads, -1))  # [N, T, 3, heads, d]
    q, k = parts[:, :, :2].permute(2, 0, 3, 1, 4).contiguous()  # or each product copies k anew
    return attention.q_norm(q) * attention.scale, attention.k_norm(k)


def _through(row: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """row [N, heads, t] times the first t rows of softmax(q kᵀ): [N, heads, T]."""
    parts = zip(row.split(ROWS, 2), q[:, :, : row.shape[2]].split(ROWS, 2), strict=True)
    keys = k.transpose(2, 3)  # [N, heads, d, T]
    return sum((r.unsqueeze(2) @ (rows @ keys).softmax(3)).squeeze(2) for r, rows in parts)
