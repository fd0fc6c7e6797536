"""Running a network over images: logits and features by image_id.

The one function behind validation (02), feature caching (03) and prediction (05).
"""

from functools import partial

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from src.artifacts.dataset import own_columns
from src.artifacts.predictions import UNKNOWN, Predictions, from_arrays, is_sorted
from src.artifacts.space import space
from src.config.schema import Config
from src.data.dataset import eval_loader
from src.data.transforms import EvalTransform, Preprocessing
from src.networks.base import Network
from src.networks.kept import Kept
from src.progress import progress
from src.runtime import gather_arrays


@torch.inference_mode()
def run_network(
    network: Network,
    table: pd.DataFrame,
    transform,
    prep: Preprocessing,
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int,
    channels_last: bool = True,
    label: str | None = None,
    view: int = 0,
    kept: Kept | None = None,
    logits: bool = True,
) -> Predictions:
    """Predictions of every row of `table` (columns image_id, path, maybe label and fold, and those
    of data.columns, which are kept).

    Each process takes every n-th image and none is padded; all processes get all rows, sorted by
    image_id. `label` names the progress, None hides it. `view` numbers the random draws of an
    augmenting transform. kept: where features of the network's body are, if it is frozen; images
    that are there are not passed again. logits: whether they are wanted; of a million images and
    ten thousand classes they are 40 GB, and [N, 0] where only features are.
    """
    if kept is not None:
        again = partial(
            run_network, network, transform=transform, prep=prep, accelerator=accelerator,
            batch_size=batch_size, workers=workers, channels_last=channels_last, label=label,
            logits=False,
        )  # fmt: skip
        features = kept.features(table, transform.view, accelerator, again)
        return _classified(network, features, table, accelerator, batch_size)
    if not is_sorted(table["image_id"].to_numpy(dtype=str)):
        table = table.sort_values("image_id")  # and not the predictions, which may be gigabytes
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = table.iloc[rank::world]
    device = accelerator.device
    pin = device.type == "cuda"
    draws = [(view, position, row) for row, position in enumerate(range(rank, len(table), world))]
    loader = eval_loader(mine, transform, draws, batch_size, workers, pin)
    network.eval()
    rows = _Rows(len(mine))
    with progress(len(mine), label) as bar:
        for batch in loader:
            images = prep.normalise(batch.images.to(device, non_blocking=True))
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with accelerator.autocast():
                output = network(images)
            rows.add(logits=output.logits if logits else images.new_empty(len(images), 0),
                     features=output.features)  # fmt: skip
            bar.update(len(images))
    found = Predictions(
        mine["image_id"].to_numpy(dtype=str),
        rows.arrays["logits"],
        _column(mine, "label"),
        _column(mine, "fold"),
        rows.arrays["features"],
        own_columns(mine),
    )
    if world > 1:
        found = from_arrays(gather_arrays(found.arrays()))
    ids = found.image_id
    return found if is_sorted(ids) else found.take(np.sort(ids))


class _Rows:
    """Arrays [count, …] that are filled batch by batch: nothing is in memory twice."""

    def __init__(self, count: int):
        self.count, self.done = count, 0
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, **parts: torch.Tensor) -> None:
        for name, part in parts.items():
            found = part.float().cpu().numpy()
            if name not in self.arrays:
                self.arrays[name] = space((self.count, *found.shape[1:]))
            self.arrays[name][self.done : self.done + len(found)] = found
        self.done += len(part)


def _classified(
    network: Network,
    features: np.ndarray,
    table: pd.DataFrame,
    accelerator: Accelerator,
    batch_size: int,
) -> Predictions:
    """Logits of features [N, D], those of `table` by image_id."""
    network.eval()
    rows = _Rows(len(features))
    for part in torch.from_numpy(features).split(batch_size):
        with accelerator.autocast():
            found = network.classifier(part.to(accelerator.device))
        rows.add(logits=found)
    table = table.sort_values("image_id")
    return Predictions(
        table["image_id"].to_numpy(dtype=str),
        rows.arrays["logits"],
        _column(table, "label"),
        _column(table, "fold"),
        features,
        own_columns(table),
    )


def _column(table: pd.DataFrame, name: str) -> np.ndarray:
    return table[name].to_numpy() if name in table else np.full(len(table), UNKNOWN)


def run_evaluation(
    network: Network,
    prep: Preprocessing,
    table: pd.DataFrame,
    config: Config,
    accelerator: Accelerator,
    label: str | None = None,
    kept: Kept | None = None,
) -> Predictions:
    """`run_network` on the evaluation view, in the batches that 02 evaluates in."""
    return run_network(
        network,
        table,
        EvalTransform(prep),
        prep,
        accelerator,
        batch_size=config.train.eval_batch_size,
        workers=config.data.workers,
        channels_last=config.train.channels_last,
        label=label,
        kept=kept,
    )
