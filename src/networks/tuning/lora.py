"""LoRA (Hu et al., ICLR 2022): a frozen weight matrix and a learned one of low rank beside it.

    y = W x + b + (α / r) B A x      W: [out, in], frozen · A: [r, in], random · B: [out, r], from 0

which is one matrix, W' = W + (α / r) B A: `merged` makes it. In open_clip, whose attention holds
the projections of q, k and v as one parameter and no layer, and in EVA-02, which uses that matrix
with a bias of its own, W' is made anew for every pass.

The library peft does the same (a test compares them), but renames W, and needs to be installed
wherever a network is loaded: here names stay, so that pretrained weights, delta files and
`train.freeze` need not know of it.
"""

import torch
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.tuning import LoRA
from src.errors import UserError
from src.networks.tuning.blocks import transformer_blocks

ATTENTION = ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", "attn")
PACKED = "in_proj_weight"  # q, k and v of an attention that has no layer for them


class LowRank(nn.Module):
    """x [.., in] → (α / r) B A x [.., out]"""

    def __init__(self, weight: torch.Tensor, section: LoRA):
        super().__init__()
        wide, narrow = weight.shape
        self.a = nn.Parameter(torch.empty(section.rank, narrow))
        self.b = nn.Parameter(torch.zeros(wide, section.rank))
        self.factor, self.dropout = section.alpha / section.rank, section.dropout
        nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(x, self.dropout, self.training)
        return self.factor * F.linear(F.linear(x, self.a), self.b)

    def matrix(self) -> torch.Tensor:
        return self.factor * (self.b @ self.a)  # [out, in]


def lora(section: LoRA, backbone: nn.Module, classes: Classes) -> None:
    """Errors: UserError for targets that match no layer, with the names that there are."""
    for block in transformer_blocks(backbone, "model.tuning=lora"):
        layers = {n: m for n, m in block.named_modules() if _usable(n, m, block)}
        for name in _chosen(section.targets, layers):
            _beside(layers[name], block.get_submodule(name.rpartition(".")[0]), section)


def _beside(layer: nn.Module, above: nn.Module, section: LoRA) -> None:
    hidden = layer if _packed(layer) else above if _bias_apart(above) else None
    if hidden is None or layer is not _held(hidden)[0]:
        layer.lora = LowRank(layer.weight, section)
        layer.register_forward_hook(_add)
        return
    if section.dropout:
        raise UserError(
            f"model.tuning.dropout={section.dropout}: {type(hidden).__name__} of this backbone "
            "takes q, k and v from one matrix, in which no input can be dropped; set it to 0"
        )
    layer.lora = LowRank(getattr(*_held(hidden)), section)
    hidden.register_forward_pre_hook(_put_in)
    hidden.register_forward_hook(_take_out, always_call=True)


def _add(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return output + layer.lora(inputs[0])


def _put_in(attention: nn.Module, inputs: tuple) -> None:
    """What lies in `__dict__` is found before the parameter of that name."""
    holder, name = _held(attention)
    holder.__dict__[name] = getattr(holder, name) + holder.lora.matrix()


def _take_out(attention: nn.Module, inputs: tuple, output) -> None:
    holder, name = _held(attention)
    holder.__dict__.pop(name, None)


def _held(attention: nn.Module) -> tuple[nn.Module, str]:
    """Where an attention that uses the matrix of q, k and v without calling a layer has it."""
    return (attention, PACKED) if _packed(attention) else (attention.qkv, "weight")


def _packed(module: nn.Module) -> bool:
    return getattr(module, PACKED, None) is not None


def _bias_apart(module: nn.Module) -> bool:
    """EVA's attention, whose keys have no bias."""
    fused = getattr(module, "q_bias", None) is not None and module.qkv is not None
    return fused and not module.qkv_bias_separate


def _usable(name: str, module: nn.Module, block: nn.Module) -> bool:
    """Also not in an attention that does not call its layers."""
    inside = _packed(block.get_submodule(name.rpartition(".")[0]))
    return _packed(module) or (isinstance(module, nn.Linear) and not inside)


def _chosen(targets: tuple[str, ...] | None, names: dict[str, nn.Module]) -> list[str]:
    found = [n for n in names if n in ATTENTION] if targets is None else []
    for target in targets or ():
        matching = [n for n in names if n == target or n.endswith(f".{target}")]
        if not matching:
            raise _no_layer(f"model.tuning.targets: no layer matches {target!r}", names)
        found += matching
    if not found:
        raise _no_layer("model.tuning=lora: attention has no layer that can be added to", names)
    return list(dict.fromkeys(found))


def _no_layer(what: str, names: dict[str, nn.Module]) -> UserError:
    return UserError(f"{what}; in a block of this backbone there are {', '.join(names)}")


def merged(state: dict[str, torch.Tensor], section: LoRA) -> dict[str, torch.Tensor]:
    """The state of the network without LoRA that does the same: W' in the place of W."""
    found = {k: v for k, v in state.items() if not k.endswith((".lora.a", ".lora.b"))}
    for key, b in state.items():
        if key.endswith(".lora.b"):
            layer = key.removesuffix(".lora.b")
            weight = next(f"{layer}.{n}" for n in ("weight", PACKED) if f"{layer}.{n}" in found)
            low_rank = b @ state[f"{layer}.lora.a"]
            found[weight] = found[weight] + section.alpha / section.rank * low_rank
    return found
