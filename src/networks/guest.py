"""A guest: one more token on its way through a vision transformer, which reads the tokens of its
image in every block and is read by none of them.

x_l: [N, T, D] tokens after block l · g_l: [N, D] the guest · Block: [N, T + 1, D] → the same

    [x_l ; g_l] = Block_l([x_{l−1} ; g_{l−1}], M)        M [T + 1, T + 1]: who (row) reads whom
    M_ij = 0 where j is the guest and i is not, elsewhere 1

The image's tokens are what they are without the guest, up to rounding: what is trained with one is
what predicts without. The guest is put behind the tokens that enter a block and taken from those
that leave it, so that a network may do with its tokens between two blocks what it likes (TransFG).
Rotary embeddings do not turn it: it has no place in the image.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from src.networks.attention import forget_last


def no_guests(backbone: nn.Module) -> str | None:
    """Why a backbone takes no guest; None: it does."""
    if isinstance(backbone, VisionTransformer | Eva):
        return None
    return f"{type(backbone).__name__} is neither timm's VisionTransformer nor its Eva"


class Guest:
    """Hooks on a backbone's blocks, which do nothing while no guest is there. They are put on once,
    before anything is compiled: torch.compile would not notice later ones."""

    def __init__(self, backbone: VisionTransformer | Eva):
        self.backbone = backbone
        self.token: torch.Tensor | None = None  # [N, D]
        for block in backbone.blocks:
            block.register_forward_pre_hook(self._join, with_kwargs=True)
            block.register_forward_hook(self._leave)

    @contextmanager
    def visits(self, token: torch.Tensor) -> Iterator[None]:
        """While it lasts, `token` [N, D] goes along with the one pass over N images."""
        self.token = token
        try:
            yield
        except BaseException:
            self.token = None
            raise

    def left(self) -> torch.Tensor:
        """[N, D]: the guest after that pass, as the backbone ends a token that it pools."""
        token, self.token = self.token[:, None], None
        backbone = self.backbone
        token = backbone.norm(token)
        pool = backbone.attn_pool
        return backbone.fc_norm(token[:, 0] if pool is None else pool(token))

    def _join(self, block: nn.Module, inputs: tuple, keys: dict) -> tuple[tuple, dict] | None:
        if self.token is None:
            return None
        tokens = inputs[0]  # [N, T, D]
        tokens = torch.cat([tokens, self.token[:, None].to(tokens.dtype)], 1)
        count = tokens.shape[1]
        mask = torch.ones(count, count, dtype=torch.bool, device=tokens.device)
        mask[:-1, -1] = False
        keys = keys | {"attn_mask": mask}
        if keys.get("rope") is not None:
            keys["rope"] = _unturned(keys["rope"])
        return (tokens, *inputs[1:]), keys

    def _leave(self, block: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if self.token is None:
            return None
        forget_last(block)
        self.token = output[:, -1]
        return output[:, :-1]


def _unturned(rope: torch.Tensor) -> torch.Tensor:
    """One more row of sines and cosines [..., T, 2 d], with an angle of 0."""
    sines = torch.zeros_like(rope[..., :1, : rope.shape[-1] // 2])
    return torch.cat([rope, torch.cat([sines, sines + 1], -1)], -2)
