"""Parts of a network that keep the weights they came with.

`train.freeze` names parameters and `train.freeze_batchnorm` is about the statistics of batch norm.
What is frozen from the first epoch to the last can be had again from where it came from, so that
checkpoints and weights files leave it out and name its hash (`Rest`). What thaws after some epochs
is in all files and in the optimizer from the beginning; as it gets no gradient, the optimizer
neither moves nor decays it, and its momentum begins with its first gradient.
"""

import difflib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from src.config.schedules import Frozen
from src.errors import UserError, some
from src.networks.batchnorm import LAYERS


@dataclass(frozen=True)
class Rest:
    """Frozen tensors that their source gives back, so that no file of ours holds them.

    names: in the network's state · source: a weights file, or timm's hub · source_sha256: of that
    file · sha256: `tensors_sha256` of the tensors · body: they are all tensors but the head's, and
    the head alone makes logits of features (src/networks/kept.py)
    """

    names: frozenset[str]
    source: str
    source_sha256: str | None
    sha256: str
    body: bool = False

    def facts(self) -> dict:
        """What a file says about it; the names are those that the file lacks."""
        keys = ("source", "source_sha256", "sha256", "body")
        return {key: getattr(self, key) for key in keys}


def freeze(network: nn.Module, patterns: Iterable[str], batchnorm: bool) -> set[str]:
    """Take the parameters whose names match shell-style `patterns` out of the training; returns
    the names of all tensors that will not change, statistics of batch norm included.

    batchnorm: keep those of every layer. Errors: UserError for a pattern that nothing matches, for
    `batchnorm` without such layers, and when nothing is left to train.
    """
    parameters = dict(network.named_parameters())
    for pattern in patterns:
        for name in _matching(pattern, parameters):
            parameters[name].requires_grad_(False)
    if parameters and not any(p.requires_grad for p in parameters.values()):
        raise UserError(
            f"train.freeze {some(list(patterns))} holds all {len(parameters)} parameters of the "
            "network, the classifier too, so there is nothing to train; leave `classifier.*` out"
        )
    if batchnorm and not any(isinstance(module, LAYERS) for module in network.modules()):
        raise UserError(
            "train.freeze_batchnorm: this network has no batch norm; remove it, or choose another "
            "model.backbone"
        )
    held = {id(buffer) for layer in _held(network, batchnorm) for buffer in layer.buffers()}
    buffers = {name for name, buffer in network.named_buffers() if id(buffer) in held}
    frozen = {name for name, p in parameters.items() if not p.requires_grad}
    return (frozen | buffers) & network.state_dict().keys()


def thawing(network: nn.Module, items: Iterable[Frozen]) -> dict[str, int]:
    """Name → the epoch from which it trains, of all parameters that `items` hold until an epoch;
    the latest counts, and what `freeze` holds stays so. Nothing is changed yet.

    Errors: UserError for a pattern that nothing matches, and when the first epoch has nothing to
    train.
    """
    parameters = dict(network.named_parameters())
    found: dict[str, int] = {}
    for item in items:
        for name in _matching(item.name, parameters):
            if parameters[name].requires_grad:
                found[name] = max(item.until, found.get(name, 0))
    if found and not any(p.requires_grad and n not in found for n, p in parameters.items()):
        raise UserError(
            f"train.freeze {some([item.name for item in items])}: until epoch "
            f"{min(found.values())} there is nothing to train, the classifier is frozen, too; "
            "leave `classifier.*` out"
        )
    return found


def thaw(network: nn.Module, epochs: dict[str, int], epoch: int) -> None:
    """Let those parameters of `thawing` train whose epoch has come, and hold the others."""
    if epochs:
        parameters = dict(network.named_parameters())
        for name, first in epochs.items():
            parameters[name].requires_grad_(epoch >= first)


def training_mode(objective: nn.Module, network: nn.Module, batchnorm: bool) -> None:
    """`objective.train()`, after which the batch norm layers of `network` that `freeze` holds are
    in eval mode again: they normalise by their statistics and leave them alone."""
    objective.train()
    for layer in _held(network, batchnorm):
        layer.eval()


def _held(network: nn.Module, batchnorm: bool) -> list[nn.Module]:
    """Batch norm layers whose parameters are all frozen, or all layers."""
    layers = [module for module in network.modules() if isinstance(module, LAYERS)]
    if batchnorm:
        return layers
    own = [(layer, list(layer.parameters())) for layer in layers]
    return [layer for layer, p in own if p and not any(q.requires_grad for q in p)]


def _matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Errors: UserError where there is none."""
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise _unknown(pattern, list(names))
    return found


def _unknown(pattern: str, names: list[str]) -> UserError:
    parts = [name.split(".") for name in names]
    whole = {".".join(p[:i]) + ".*" for p in parts for i in range(1, len(p))}
    near = difflib.get_close_matches(pattern, sorted(whole | set(names)), 3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return UserError(
        f"train.freeze: no parameter of the network matches {pattern!r}{hint} There are "
        f"{some(names)}"
    )


# ---- files that hold only what was trained -----------------------------------------------------


def trained(state: dict[str, torch.Tensor], rest: Rest | None, prefix: str = "") -> dict:
    """`state` without the rest; prefix: of the network's names in it."""
    left_out = {prefix + name for name in rest.names} if rest else ()
    return {key: tensor for key, tensor in state.items() if key not in left_out}


def load_trained(module: nn.Module, state: dict, rest: Rest | None, prefix: str = "") -> None:
    """Load what `trained` kept into a module that has the rest already."""
    own, names = module.state_dict(), rest.names if rest else ()
    module.load_state_dict({prefix + name: own[prefix + name] for name in names} | state)


def tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """Of names, shapes, dtypes and bytes, in the order of the names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy())
    return found.hexdigest()
