"""The mean of the weights of networks of one shape, and its batch norm.

    θ̄ = Σ_i a_i θ_i / Σ_i a_i    of several trainings (model soups: Wortsman et al., ICML 2022), of
                                  the last epochs of one (SWA: Izmailov et al., UAI 2018), or of
                                  where one began and ended (WiSE-FT: Wortsman et al., CVPR 2022)

The mean of running statistics is not the statistics of the mean network, so that they are estimated
anew on training images (Izmailov et al., §3.2): as plain means over batches of the size trained
with, in random order, each image once in its evaluation view. Layers whose statistics are the same
in all networks, such as frozen ones, keep them.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from src.config.schema import Config
from src.data.dataset import eval_loader
from src.data.transforms import EvalTransform, Preprocessing
from src.networks.base import Network
from src.networks.batchnorm import LAYERS, statistics

State = dict[str, torch.Tensor]


class Average:
    """A running mean of states, summed in float64 so that the mean of equal ones is like each. What
    is not a float (counters, indices) is that of the first.

    sums, count: of an earlier one, as `facts` gave them; count is the sum of weights
    """

    def __init__(self, sums: State | None = None, count: float = 0):
        self.sums, self.count = sums or {}, count

    def add(self, state: State, weight: float = 1) -> None:
        self.count += weight
        for name, tensor in state.items():
            tensor = tensor.detach().cpu()
            if name not in self.sums:
                floats = tensor.is_floating_point()
                self.sums[name] = weight * tensor.double() if floats else tensor.clone()
            elif tensor.is_floating_point():
                self.sums[name] += weight * tensor.double()

    def mean(self) -> State:
        return {k: v / self.count if v.is_floating_point() else v for k, v in self.sums.items()}

    def facts(self) -> dict:
        """What a checkpoint needs to go on."""
        return {"sums": self.sums, "count": self.count}


def moved_layers(network: nn.Module, other: State) -> list[nn.Module]:
    """Batch norm layers whose statistics are not those that they have in `other`."""
    own = statistics(network)
    moved = {
        k.rpartition(".")[0] for k, v in own.items() if not torch.equal(v.cpu(), other[k].cpu())
    }
    return [m for name, m in network.named_modules() if name in moved and isinstance(m, LAYERS)]


@torch.no_grad()
def estimate_statistics(
    network: nn.Module, layers: list[nn.Module], batches: Iterable[torch.Tensor]
) -> None:
    """Running mean and variance of `layers` as means over batches of images; all else as it is."""
    momenta = [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # each batch counts the same
        layer.train()
    for images in batches:
        network(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()


def refresh_statistics(
    network: Network,
    one: State,
    images: pd.DataFrame,
    prep: Preprocessing,
    config: Config,
    accelerator: Accelerator,
) -> int:
    """Estimate the statistics of an averaged network on `images`, those it may train on; returns
    of how many layers. No image is read where there is nothing to do.

    one: the state of one of the networks that were averaged
    """
    layers = moved_layers(network, one)
    if layers:
        batches = _batches(images, prep, config, accelerator)
        with accelerator.autocast():
            estimate_statistics(network, layers, batches)
    return len(layers)


def _batches(images: pd.DataFrame, prep: Preprocessing, config: Config, accelerator: Accelerator):
    """Every process sees all of them, and has the same statistics after."""
    size = min(config.train.batch_size, len(images))
    order = np.random.default_rng(config.seed).permutation(len(images))
    draws = [(0, i, int(row)) for i, row in enumerate(order[: len(images) // size * size])]
    device, workers = accelerator.device, config.data.workers
    loader = eval_loader(images, EvalTransform(prep), draws, size, workers, device.type == "cuda")
    for batch in loader:
        found = prep.normalise(batch.images.to(device, non_blocking=True))
        if config.train.channels_last:
            found = found.contiguous(memory_format=torch.channels_last)
        yield found
