"""Where training batches come from: files, memory, or the device (`data.cache`). The same bytes.

On the device, every image is brought to the network's size once; an epoch then gathers, shifts and
mirrors whole batches, with the numbers of src/data/shift.py, and nothing is decoded, copied or
augmented on the CPU.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from src.config.data import Data
from src.data.augment import TrainTransform
from src.data.cache import check_room, free_memory, keep_images, read_image
from src.data.dataset import Batch, Draw, Epochs, train_loader
from src.data.shift import margin, moves


def training_loader(
    data: Data,
    table: pd.DataFrame,
    transform: TrainTransform,
    epochs: Epochs,
    device: torch.device,
) -> Iterable[Batch]:
    """Batches of one epoch per iteration, of the images of `table`; set `epochs.epoch` before each.

    Errors: UserError when `data.cache` asks for more memory than there is.
    """
    if data.cache == "device":
        return DeviceLoader(table, transform, epochs, device, data.workers)
    if data.cache == "memory":
        keep_images(table["path"], data.workers)
    return train_loader(table, transform, epochs, data.workers, device.type == "cuda")


class DeviceLoader:
    """Errors: UserError when the images would need more than half of the device's free memory."""

    def __init__(
        self,
        table: pd.DataFrame,
        transform: TrainTransform,
        epochs: Epochs,
        device: torch.device,
        threads: int,
    ):
        size, pad = transform.prep.size, margin(transform.prep.size)
        side = size + 2 * pad
        needed, free = len(table) * side * side * 3, _free(device)
        check_room(needed, free, f"{len(table)} images of {side} x {side} pixels", "device")
        images = np.zeros((len(table), side, side, 3), np.uint8)
        with ThreadPoolExecutor(max(1, threads)) as pool:
            wholes = pool.map(lambda path: transform.whole(read_image(path)), table["path"])
            for image, whole in zip(images, wholes, strict=True):
                image[pad : pad + size, pad : pad + size] = whole
        self.images = torch.from_numpy(images).to(device)
        self.labels = torch.tensor(table["label"].to_numpy(), dtype=torch.long, device=device)
        self.transform, self.epochs, self.size = transform, epochs, size
        self.steps = torch.arange(size, device=device)

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Batch]:
        for draws in self.epochs:
            share = len(draws) // self.epochs.streams
            streams = [self._batch(draws[i : i + share]) for i in range(0, len(draws), share)]
            yield replace(streams[0], other=streams[1]) if len(streams) == 2 else streams[0]

    def _batch(self, draws: list[Draw]) -> Batch:
        """One stream: its positions follow each other."""
        epoch, start, _ = draws[0]
        move = moves(
            self.transform.seed, epoch, start, len(draws), self.size, self.transform.augment
        )
        rows = np.array([row for _, _, row in draws])[:, None]
        plan = torch.from_numpy(np.hstack([rows, move])).to(self.steps.device, non_blocking=True)
        row, top, left, mirror, upset = (column[:, None] for column in plan.unbind(1))
        last = self.size - 1
        y = top + torch.where(upset > 0, last - self.steps, self.steps)  # [N, size]
        x = left + torch.where(mirror > 0, last - self.steps, self.steps)
        images = self.images[row[:, :, None], y[:, :, None], x[:, None, :]]  # [N, size, size, 3]
        return Batch(images.permute(0, 3, 1, 2), self.labels[row[:, 0]], rows=row[:, 0])


def _free(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
