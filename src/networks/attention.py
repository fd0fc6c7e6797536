"""Attention rollout: how much of the class token comes from each patch, over several blocks of a
vision transformer (Abnar and Zuidema, ACL 2020, in the form of TransFG, He et al., AAAI 2022).

A_l: [heads, T, T], softmax(q kᵀ / √d) of block l of 1 … L, each row sums to 1 · T: tokens, the
class token first, then other prefix tokens (registers), then the patches row by row.

    R = A_L A_{L−1} … A_1        per head, with no identity for the residual and no renormalising
    r = R[0, :] = ((A_L[0, :] A_{L−1}) A_{L−2}) … A_1

r is all that is used, and one row times a matrix is T² where a product of matrices is T³. It needs
the upper blocks first, so that q and k of each block, [N, heads, T, d], are kept on the way up: the
network's own, rounded as autocast rounded them, because that is the attention it paid. In training
autograd holds them anyway. Each map is made again on the way down, `ROWS` of its rows at a time, in
float32 whatever autocast says: memory grows with L by T · D, never by T².

With s = q kᵀ / √d and z_i = Σ_j exp s_ij, no map is normalised, only its row of weights:

    (r A)_j = Σ_i (r_i / z_i) exp s_ij

A softmax also takes each row's maximum away, lest exp overflow or every exp vanish. On the CPU that
is done only where a z_i shows that one of them did: it costs two fifths more.
"""

from collections.abc import Sequence
from math import prod

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.utils.hooks import RemovableHandle

ROWS = 176  # of a map at once; 1 MB of 1370 tokens, in a core's cache from the product to the sum
RANGE = 1e-26, 1e26  # of z: far enough from where float32 ends for r / z and what exp rounds to 0


def no_rollout(backbone: nn.Module) -> str | None:
    """Why a backbone has no class row; None: it has one."""
    name = type(backbone).__name__
    if not isinstance(backbone, VisionTransformer):
        return f"{name} is none of timm's VisionTransformer"
    if not backbone.has_class_token:
        return "it has no class token"
    if any(hasattr(block, "prompts") for block in backbone.blocks):
        return "prompts stand among its tokens"
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


def watch(blocks: Sequence[Block]) -> list[RemovableHandle]:
    """From now on each pass through `blocks` leaves q and k behind, for `taken`."""
    parts = [part for block in blocks for part in (block.attn.q_norm, block.attn.k_norm)]
    return [part.register_forward_hook(_keep) for part in parts]


def _keep(part: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    """Without a gradient a view would keep the values alive, too, and the copy is due anyway."""
    part.kept = output.detach() if output.requires_grad else output.contiguous()


def taken(block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k of the last pass through a watched block, [N, heads, T, d] each, once."""
    q, k = block.attn.q_norm.kept, block.attn.k_norm.kept
    del block.attn.q_norm.kept, block.attn.k_norm.kept
    return q, k


def forget_last(block: nn.Module) -> None:
    """Of what a watched block keeps, the last token; one that is not watched keeps nothing."""
    for part in (getattr(block.attn, name, None) for name in ("q_norm", "k_norm")):
        if hasattr(part, "kept"):
            part.kept = part.kept[:, :, :-1]


def class_rollout(backbone: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """r of images [N, 3, H, W] over all blocks, patches alone: [N, heads, patches]."""
    handles, looked = watch(backbone.blocks), []
    try:
        with torch.no_grad():
            tokens = embedded(backbone, images)
            for block in backbone.blocks:
                tokens = block(tokens)
                looked.append(taken(block))
    finally:
        for handle in handles:
            handle.remove()
    return class_row(looked)[..., backbone.num_prefix_tokens :]


@torch.compiler.disable  # thousands of small steps on the CPU, which a compiler would unroll
@torch.no_grad()
def class_row(looked: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """r over blocks: [N, heads, T], for all tokens, prefix included, in float32 at least.

    looked: q and k of each block, [N, heads, T, d] each. Dropout of attention is left out.
    """
    q, k = looked[0]
    dtype = torch.promote_types(q.dtype, torch.float32)
    row = q.new_ones(*q.shape[:2], 1, dtype=dtype)  # the class token looks at itself
    for q, k in reversed(looked):
        row = _through(row, q, k)
    return row


def _through(row: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """row [N, heads, t] times the first t rows of softmax(q kᵀ / √d): [N, heads, T]. On the CPU a
    head for each core at a time, where they lie: a copy of all would cost a tenth."""
    found = row.new_empty(k.shape[:3])
    tensors, cores = (found, row, q[:, :, : row.shape[2]], k), _cores(k)
    if cores:
        images = ([t.split(cores) for t in image] for image in zip(*tensors, strict=True))
        groups = [group for image in images for group in zip(*image, strict=True)]
    else:
        groups = [[t.flatten(0, 1) for t in tensors]]
    space = row.new_empty(len(groups[0][0]) * k.shape[2] * min(ROWS, row.shape[2]))
    shift = not cores  # a GPU would have to stop to tell
    for group in groups:
        if not shift:
            low, high = _mix(*group, space, shift=False).aminmax()
            shift = not (low >= RANGE[0] and high <= RANGE[1])  # then for the others of the block
        if shift:
            _mix(*group, space, shift=True)
    return found


def _cores(tensor: torch.Tensor) -> int:
    """0: not on the CPU."""
    return torch.get_num_threads() if tensor.device.type == "cpu" else 0


def _mix(
    out: torch.Tensor, row: torch.Tensor, q: torch.Tensor, k: torch.Tensor, space: torch.Tensor,
    *, shift: bool,
) -> torch.Tensor:  # fmt: skip
    """out [maps, T] becomes row [maps, t] times softmax(q kᵀ / √d), of q [maps, t, d] and k [maps,
    T, d]; returns z [maps, t]. space: for scores · shift: by the maximum of each row of the map.
    Autocast leaves alone what works in place or has its `out`."""
    k, sums = k.to(row.dtype) * k.shape[2] ** -0.5, []
    out = out.zero_().unsqueeze(2)
    for weights, rows in zip(row.split(ROWS, 1), q.split(ROWS, 1), strict=True):
        shape = *k.shape[:2], rows.shape[1]  # [maps, T, ROWS], as k need not be turned then
        scores = torch.bmm(k, rows.to(row.dtype).mT, out=space[: prod(shape)].view(shape))
        if shift:
            scores -= scores.amax(1, keepdim=True)
        sums.append(scores.exp_().sum(1))
        out.baddbmm_(scores, (weights / sums[-1]).unsqueeze(2))
    return torch.cat(sums, 1)
