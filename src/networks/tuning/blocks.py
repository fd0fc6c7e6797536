"""What tuning must know of a vision transformer: its blocks, and the names of their parts, which
timm and open_clip write differently. No name changes where something is added to a block, so that
the pretrained weights keep their places."""

from torch import nn

from src.errors import UserError
from src.networks.backbone import stages

# x + attn(norm(x)), then x + mlp(norm(x)), each with a scale and a chance of being skipped: timm's
# vision_transformer, eva and beit, and open_clip's
BLOCKS = ("Block", "EvaBlock", "ResidualAttentionBlock", "CustomResidualAttentionBlock")


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, or the stages of another network; [] if unknown."""
    inner = getattr(_trunk(backbone), "transformer", None)
    return list(getattr(inner, "resblocks", None) or stages(_trunk(backbone)))


def _trunk(backbone: nn.Module) -> nn.Module:
    """The model of timm's in some towers of open_clip."""
    return getattr(backbone, "trunk", backbone)


def transformer_blocks(backbone: nn.Module, asked: str) -> list[nn.Module]:
    """The blocks of a vision transformer, in order. Errors: UserError for any other backbone.

    asked: what needs them, `model.tuning=prompts`
    """
    blocks = blocks_of(backbone)
    kinds = sorted({type(block).__name__ for block in blocks})
    if blocks and all(type(b).__name__ in BLOCKS and hasattr(b, "attn") for b in blocks):
        return blocks
    found = f"its stages are {', '.join(kinds)}" if kinds else "no stages of it are known"
    raise UserError(
        f"{asked} works in the blocks of a vision transformer (x + attention, then x + FFN, norms "
        f"before both), and {type(backbone).__name__} has none of these; {found}. Choose a "
        "model.backbone such as vit_base_patch16_224, or model.tuning=last_blocks"
    )


def ffn_norm(block: nn.Module) -> nn.Module:
    """LN₂, which sees the input of the FFN first."""
    return block.norm2 if hasattr(block, "norm2") else block.ln_2


def token_width(block: nn.Module) -> int:
    """D."""
    return ffn_norm(block).weight.shape[0]


def prefix_tokens(backbone: nn.Module) -> int:
    """Class token and registers, which come before the patches."""
    return getattr(_trunk(backbone), "num_prefix_tokens", 1)  # open_clip: the class token


def patch_pixels(backbone: nn.Module) -> int:
    """Height times width of a patch."""
    embed = getattr(_trunk(backbone), "patch_embed", backbone)
    height, width = embed.patch_size
    return height * width
