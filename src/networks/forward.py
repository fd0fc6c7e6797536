"""Running a network over images: logits and features by image_id.

The one function behind validation (02), feature caching (03) and prediction (05).
"""

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from tqdm import tqdm

from src.artifacts.dataset import own_columns
from src.artifacts.predictions import UNKNOWN, Predictions, from_arrays
from src.config.schema import Config
from src.data.dataset import eval_loader
from src.data.transforms import EvalTransform, Preprocessing
from src.networks.base import Network
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
) -> Predictions:
    """Predictions of every row of `table` (columns image_id, path, maybe label and fold, and those
    of data.columns, which are kept).

    Each process takes every n-th image and none is padded; all processes get all rows, sorted by
    image_id. `label` names the progress bar, None hides it. `view` numbers the random draws of an
    augmenting transform.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = table.iloc[rank::world]
    device = accelerator.device
    pin = device.type == "cuda"
    draws = [(view, position, row) for row, position in enumerate(range(rank, len(table), world))]
    loader = eval_loader(mine, transform, draws, batch_size, workers, pin)
    bar = tqdm(
        total=len(mine), desc=label, unit="img", disable=None if label and rank == 0 else True
    )
    network.eval()
    logits, features = [], []
    for batch in loader:
        images = prep.normalise(batch.images.to(device, non_blocking=True))
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with accelerator.autocast():
            output = network(images)
        logits.append(output.logits.float().cpu().numpy())
        features.append(output.features.float().cpu().numpy())
        bar.update(len(images))
    bar.close()
    found = Predictions(
        mine["image_id"].to_numpy(dtype=str),
        np.concatenate(logits),
        _column(mine, "label"),
        _column(mine, "fold"),
        np.concatenate(features),
        own_columns(mine),
    )
    if world > 1:
        found = from_arrays(gather_arrays(found.arrays()))
    return found.take(np.sort(found.image_id))


def _column(table: pd.DataFrame, name: str) -> np.ndarray:
    return table[name].to_numpy() if name in table else np.full(len(table), UNKNOWN)


def run_evaluation(
    network: Network,
    prep: Preprocessing,
    table: pd.DataFrame,
    config: Config,
    accelerator: Accelerator,
    label: str | None = None,
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
    )
