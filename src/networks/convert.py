"""Weights of a timm model as this timm, at this image size, wants them: position embeddings and
tables of relative positions on another grid, and names that changed."""

import sys

import torch
from timm.models import model_entrypoint
from torch import nn

from src.networks.base import Network

State = dict[str, torch.Tensor]


def converted(network: Network, state: State) -> State:
    """`state` after timm's own conversion of each body that it does not fit as it is: the function
    through which timm loads these models from its hub (`checkpoint_filter_fn`). Where it knows
    none, or it makes no tensor fit better, nothing changes."""
    names = {id(module): name for name, module in network.named_modules()}
    for body in network.bodies():
        prefix, convert = names[id(body.module)] + ".", _conversion(body.module)
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        own = body.module.state_dict()
        if convert is None or not part or _fitting(own, part) == len(own):
            continue
        try:
            found = convert(dict(part), body.module)
        except Exception:  # a dozen types, for weights of another network: the caller names those
            continue
        if _fitting(own, found) > _fitting(own, part):
            others = {k: v for k, v in state.items() if not k.startswith(prefix)}
            state = others | {prefix + k: v for k, v in found.items()}
    return state


def _fitting(own: State, state: State) -> int:
    return sum(key in state and state[key].shape == tensor.shape for key, tensor in own.items())


def _conversion(body: nn.Module):
    """The function beside the one that builds the model, or its own; None where there is none."""
    if hasattr(body, "checkpoint_filter_fn"):
        return body.checkpoint_filter_fn
    name = getattr(body, "pretrained_cfg", {}).get("architecture")
    module = sys.modules[model_entrypoint(name).__module__] if name else None
    return getattr(module, "checkpoint_filter_fn", None)
