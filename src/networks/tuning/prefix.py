"""The frozen prefix of a vision transformer: what comes before the first block that trains.

    tokens = prefix(images)      images [N, 3, H, W] → tokens [N, T, D], the same in every epoch
    f      = pool(norm(B_L(… B_k(tokens))))      block k of 1 … L is the first that trains

No gradient reaches it, so that autograd keeps nothing of it; and where an image looks the same in
every epoch, its tokens can be made once (src/training/prefix.py).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import DropPath, PatchDropout
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

AFTER = ("norm.", "fc_norm.", "attn_pool.", "head.")  # names of what comes after the blocks


@dataclass(frozen=True)
class Prefix:
    """first: index of the first block that trains · keywords: what each block from there on is
    called with beside its tokens, rotary embeddings"""

    first: int
    keywords: list[dict[str, Any]] = field(default_factory=list)

    def rest(self, backbone: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [N, T, D] → pooled features [N, D]"""
        for block, keywords in zip(backbone.blocks[self.first :], self.keywords, strict=True):
            tokens = block(tokens, **keywords)
        return backbone.forward_head(backbone.norm(tokens))


def no_prefix(backbone: nn.Module) -> str | None:
    """Why the tokens before the first block that trains cannot be kept; None: they can."""
    if not isinstance(backbone, VisionTransformer | Eva):
        return f"{type(backbone).__name__} is no vision transformer of timm's"
    first = first_trained(backbone)
    if first == 0:
        return "training begins in the first block, or before it"
    if first == len(backbone.blocks):
        return "no block trains, and the features of a frozen body are kept by 03"
    parts = [*backbone.blocks[:first].modules(), backbone.pos_drop]
    parts += list(backbone.patch_drop.modules()) if backbone.patch_drop is not None else []
    if any(_drops(part) for part in parts):
        return "something is dropped at random before the first block that trains"
    return None


def first_trained(backbone: nn.Module) -> int:
    """Index of the first block with a parameter that trains; 0 where one before the blocks does."""
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    if any(not name.startswith(("blocks.", *AFTER)) for name in trained):
        return 0
    inside = [int(name.split(".")[1]) for name in trained if name.startswith("blocks.")]
    return min(inside, default=len(backbone.blocks))


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.Dropout):
        return module.p > 0
    if isinstance(module, DropPath):
        return bool(module.drop_prob)
    return isinstance(module, PatchDropout) and module.prob > 0


@torch.no_grad()
def prefix_of(backbone: nn.Module, images: torch.Tensor) -> tuple[Prefix, torch.Tensor]:
    """The prefix, and what it makes of images [N, 3, H, W]: tokens [N, T, D]. In the backbone's own
    pass, of which the blocks tell what they are given."""
    found, first = [], first_trained(backbone)

    def tell(block: nn.Module, inputs: tuple, keywords: dict) -> None:
        found.append((inputs[0], keywords))

    handles = [
        block.register_forward_pre_hook(tell, with_kwargs=True) for block in backbone.blocks[first:]
    ]
    try:
        backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    return Prefix(first, [keywords for _, keywords in found]), found[0][0]
