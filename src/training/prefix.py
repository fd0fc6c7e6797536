"""The frozen prefix of a tuned network, run once: its tokens in the place of the images.

Only where an image looks the same in every epoch, so that its tokens stay; the rest of the network
then trains on tokens [N, T, D] in memory, and no image is read again but those of validation.
"""

from collections.abc import Iterator
from math import prod

import pandas as pd
import torch
from accelerate import Accelerator

from src import cli
from src.config.schema import Config
from src.data.dataset import Batch, Epochs, eval_loader
from src.data.transforms import EvalTransform, Preprocessing
from src.networks.base import Network
from src.networks.plain import Plain
from src.networks.tuning.prefix import no_prefix, prefix_of
from src.progress import each

GIB = 2**30


class TokenLoader:
    """Batches of one epoch per iteration, whose images are tokens; set `epochs.epoch` before each.

    tokens: [N, T, D] of every row of the training table, on the CPU · labels: [N]
    """

    def __init__(self, tokens: torch.Tensor, labels: torch.Tensor, epochs: Epochs):
        self.tokens, self.labels, self.epochs = tokens, labels, epochs

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Batch]:
        for draws in self.epochs:
            rows = torch.tensor([row for _, _, row in draws])
            yield Batch(self.tokens[rows], self.labels[rows], rows=rows)


def why_not(config: Config, network: Network) -> str | None:
    """Why the prefix must run anew for each image; None: its tokens can be kept."""
    train = config.train
    if getattr(type(network), "embed", None) is not Plain.embed:
        return f"model.network={config.model.network.name} runs the blocks in its own way"
    if reason := no_prefix(network.backbone):
        return reason
    if train.augment.chance:
        return f"train.augment changes images at random ({', '.join(train.augment.chance)})"
    if train.mixing.alphas or train.second_sampler or train.resizing:
        return "train.mixing, train.second_sampler and train.resizing need the images"
    if train.distill.views == "same":
        return "train.distill.views=same shows the images to teachers, too"
    for auxiliary in train.auxiliaries:
        if auxiliary.along:
            return auxiliary.along
    return "train.freeze lets parts of it train later" if train.thaws else None


def keep_tokens(
    config: Config,
    network: Network,
    prep: Preprocessing,
    table: pd.DataFrame,
    epochs: Epochs,
    accelerator: Accelerator,
    home: str,
) -> TokenLoader | None:
    """What trains the network from now on, whose prefix is then set; None: images do. Says which,
    and why.

    table: rows that are trained on · home: whose line is printed
    """
    limit = config.train.prefix_cache
    if config.model.tuning is None or not limit or not config.train.epochs:
        return None
    reason = why_not(config, network)
    loader = None if reason else _tokens(config, network, prep, table, epochs, accelerator)
    if loader is None:
        reason = reason or f"their tokens need more than train.prefix_cache={limit:g} GiB"
        cli.say(f"{home}: the frozen prefix runs anew for each image, as {reason}")
        return None
    size, first = loader.tokens.nbytes / GIB, network.prefix.first
    cli.say(
        f"{home}: {first} of {len(network.backbone.blocks)} blocks are frozen and ran once; the "
        f"tokens of {len(table)} images take {size:.2f} GiB"
    )
    return loader


@torch.no_grad()
def _tokens(
    config: Config,
    network: Network,
    prep: Preprocessing,
    table: pd.DataFrame,
    epochs: Epochs,
    accelerator: Accelerator,
) -> TokenLoader | None:
    """None where they need more memory than they may. As they are, float32 mostly, also with
    autocast: in half of that they would be others than those of a run without."""
    train, device = config.train, accelerator.device
    draws, size, kept = [(0, i, i) for i in range(len(table))], train.eval_batch_size, None
    transform, workers, pin = EvalTransform(prep), config.data.workers, device.type == "cuda"
    network.eval()
    loader = eval_loader(table, transform, draws, size, workers, pin)
    for batch in each(loader, "frozen prefix", "batches"):
        images = prep.normalise(batch.images.to(device, non_blocking=True))
        if train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with accelerator.autocast():
            prefix, tokens = prefix_of(network.backbone, images)
        if kept is None:
            shape = len(table), *tokens.shape[1:]
            if prod(shape) * tokens.dtype.itemsize > train.prefix_cache * GIB:
                return None
            kept = torch.empty(shape, dtype=tokens.dtype)
        kept[batch.rows] = tokens.cpu()
    network.prefix = prefix
    labels = torch.tensor(table["label"].to_numpy(), dtype=torch.long)
    return TokenLoader(kept, labels, epochs)
