"""TransFG (He et al., AAAI 2022): a vision transformer whose last block sees the class token and
the patches that it looked at, one per head, instead of all of them.

Patches of P pixels overlap, one every `stride` pixels, so that the H × W image has h = (H − P) //
stride + 1 rows of them and w columns alike; the position embedding is resized to that grid. x_l:
tokens [T, D] that leave block l of 1 … L · r: [heads, patches], the class token's row of attention
rollout over blocks 1 … L − 1 (src/networks/attention.py).

    i_h = argmax_j r[h, j]                                  the first of equal ones
    f   = norm(block_L([x_{L−1}[prefix] ; x_{L−1}[i_1] ; … ; x_{L−1}[i_heads]]))[class token]
    z   = W f + b
    L   = L(z, y) + λ 1/B² Σ_i Σ_j  1 − cos(f_i, f_j)              where y_i = y_j, i = j included
                                    max(cos(f_i, f_j) − m, 0)      elsewhere

A patch that several heads choose is there several times. The prefix is the class token and, where
the backbone has registers, those too: its last block was trained to lean on them. The contrast is
of the images that one process passes forward together, as in the authors' code.

The authors' code loads no pretrained weights into block L, by a slip in the names: `last_block:
random` does that, too, and drops them from any source, a TransFG's as well. Others found about
half a point over a plain ViT on CUB, and nothing on dogs without the selection.
"""

from math import prod

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer, init_weights_vit_timm
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.config.networks import TransFG as Settings
from src.data.dataset import Batch
from src.errors import UserError
from src.networks.attention import class_row, embedded, no_rollout, taken, watch
from src.networks.base import Evidence, Output, Progress
from src.networks.plain import Plain


class TransFG(Plain):
    """The backbone is timm's whole ViT; its last block reads the parts."""

    def __init__(self, model: Model, backbone: nn.Module, classes: Classes):
        settings: Settings = model.network
        _check(backbone, model.backbone)
        overlap(backbone, settings.stride, (model.image_size, model.image_size))
        if settings.last_block == "random":
            backbone.blocks[-1].apply(init_weights_vit_timm)
        super().__init__(model, backbone, classes)
        self.settings = settings
        watch(backbone.blocks[:-1])

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """images [N, 3, H, W] → f [N, D], or what a neck makes of it; what the contrast is of."""
        backbone, prefix = self.backbone, self.backbone.num_prefix_tokens
        hidden, row = self._looked(images)
        parts = (prefix + row.argmax(2)).unsqueeze(2).expand(-1, -1, hidden.shape[2])
        tokens = torch.cat([hidden[:, :prefix], hidden.gather(1, parts)], 1)  # [N, prefix+heads, D]
        last = backbone.norm(backbone.blocks[-1](tokens))
        return self.neck(backbone.forward_head(last, pre_logits=True))

    def loss(
        self, batch: Batch, criterion: nn.Module, progress: Progress
    ) -> tuple[dict[str, torch.Tensor], Output]:
        """The criterion and the contrast, which takes its weight along."""
        terms, output = super().loss(batch, criterion, progress)
        found = contrast(output.features, batch.labels, self.settings.margin)
        return terms | {"contrast": self.settings.contrast * found}, output

    @torch.no_grad()
    def evidence(self, images: torch.Tensor) -> Evidence:
        """Boxes `tokens`, the patch of each head, and map `rollout`, the mean of r over heads."""
        embed, stride = self.backbone.patch_embed, self.settings.stride
        _, row = self._looked(images)
        height, width = embed.grid_size
        parts = row.argmax(2)  # [N, heads]
        corner = stride * torch.stack([parts % width, parts // width], 2)  # [N, heads, 2], x y
        patch = corner.new_tensor(embed.patch_size[::-1])
        boxes = torch.cat([corner, corner + patch], 2).to(row.dtype)
        return Evidence({"tokens": boxes}, {"rollout": row.mean(1).unflatten(1, (height, width))})

    def adopt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """With `last_block: random` the last block stays as it is."""
        if self.settings.last_block == "pretrained":
            return state
        last = f"backbone.blocks.{len(self.backbone.blocks) - 1}."
        return {key: tensor for key, tensor in state.items() if not key.startswith(last)}

    def _looked(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x_{L−1} [N, T, D] and r [N, heads, patches] of images [N, 3, H, W]."""
        tokens, looked = embedded(self.backbone, images), []
        for block in list(self.backbone.blocks)[:-1]:
            tokens = block(tokens)
            looked.append(taken(block))
        return tokens, class_row(looked)[..., self.backbone.num_prefix_tokens :]


def contrast(
    features: torch.Tensor,
    labels: torch.Tensor,
    margin: float,
    others: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean over all pairs of features [B, D], labels [B], with `others` [B, D] of the same labels,
    None: with themselves, each image with itself included; in float32, as cosines near 1 cancel."""
    with torch.autocast(features.device.type, enabled=False):
        directions = F.normalize(features.float(), dim=1)
        others = directions if others is None else F.normalize(others.float(), dim=1)
        cosines = directions @ others.T  # [B, B]
        same = labels[:, None] == labels
        return torch.where(same, 1 - cosines, (cosines - margin).clamp(min=0)).mean()


def overlap(backbone: VisionTransformer, stride: int, size: tuple[int, int]) -> None:
    """Take a patch every `stride` pixels of images of `size` (height, width), and resize the
    position embedding to their grid.

    Errors: UserError where patches would leave pixels out, between them or at the far edges.
    """
    embed = backbone.patch_embed
    for side, patch in zip(size, embed.patch_size, strict=True):
        _check_stride(side, patch, stride)
    grid = tuple((side - p) // stride + 1 for side, p in zip(size, embed.patch_size, strict=True))
    if backbone.pos_embed is not None:
        prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
        resized = resample_abs_pos_embed(
            backbone.pos_embed.detach(), grid, embed.grid_size, num_prefix_tokens=prefix
        )
        backbone.pos_embed = nn.Parameter(resized.clone())
    embed.proj.stride = (stride, stride)
    embed.img_size, embed.grid_size, embed.num_patches = size, grid, prod(grid)
    embed.strict_img_size, embed.dynamic_img_pad = True, False


def _check_stride(side: int, patch: int, stride: int) -> None:
    if stride > patch:
        raise UserError(
            f"model.network.stride={stride}: patches of {patch} pixels would leave gaps; set it to "
            f"{patch} (no overlap) or less, published are 12 for patches of 16"
        )
    left = (side - patch) % stride
    if side >= patch and not left:
        return
    below, above = (side - left, side - left + stride) if side >= patch else (0, patch)
    near = f"{below} or {above}" if below else f"{above}"
    raise UserError(
        f"model.image_size={side}: (image_size - {patch}) must be a multiple of "
        f"model.network.stride={stride}, or patches of {patch} pixels miss the image's edge; set "
        f"model.image_size to {near}"
    )


def _check(backbone: nn.Module, name: str) -> None:
    """Errors: UserError for a backbone without a class token that looks at patches."""
    reason = no_rollout(backbone)
    if reason is None and type(backbone.patch_embed) is not PatchEmbed:
        reason = f"its patches are made by {type(backbone.patch_embed).__name__}"
    if reason is None and backbone.global_pool != "token":
        reason = f"it pools its tokens ({backbone.global_pool}); set model.kwargs.global_pool=token"
    if reason is None and len(backbone.blocks) < 2:
        reason = "it has one block, and parts are chosen before the last one"
    if reason is not None:
        raise UserError(
            f"model.backbone={name}: model.network=transfg chooses patches by what the class token "
            f"of a vision transformer looks at, and {reason}. Choose another, for example "
            "vit_base_patch16_224, or another model.network"
        )
