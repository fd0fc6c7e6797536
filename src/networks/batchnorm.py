"""The statistics of batch norm layers by themselves: what `bn: train` changes and nothing else."""

from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from src.artifacts.files import write_bytes
from src.artifacts.tensors import read_tensors
from src.errors import UserError, some

LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
FILE = "batchnorm.safetensors"


def statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    """Running mean and variance of every batch norm layer, by name."""
    return {
        f"{name}.{key}": buffer
        for name, module in network.named_modules()
        if isinstance(module, LAYERS)
        for key, buffer in module.named_buffers(recurse=False)
    }


def train_statistics(network: nn.Module) -> None:
    """Batch norm layers in training mode, everything else (dropout, drop path) in eval mode.

    Errors: UserError when there are none.
    """
    layers = [module for module in network.modules() if isinstance(module, LAYERS)]
    if not layers:
        raise UserError("bn: train needs a backbone with batch norm; this one has none. Remove it")
    network.eval()
    for layer in layers:
        layer.train()


def save_statistics(path: Path, network: nn.Module) -> Path:
    tensors = {k: v.detach().cpu().contiguous() for k, v in statistics(network).items()}
    return write_bytes(path, save(tensors))


def load_statistics(path: Path, network: nn.Module) -> None:
    """Put saved statistics into a network. Errors: UserError unless they are of this network."""
    own = statistics(network)
    _, found = read_tensors(path, "pt", "run 03 again with --overwrite")
    differing = own.keys() ^ found.keys()
    differing |= {k for k in own.keys() & found.keys() if own[k].shape != found[k].shape}
    if differing := sorted(differing):
        raise UserError(f"{path}: of another network: {some(differing)}; run 03 again")
    for name, buffer in own.items():
        buffer.copy_(found[name])
