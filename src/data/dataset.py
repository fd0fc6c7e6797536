"""Tables of images → batches of tensors.

A batch travels as uint8; `Preprocessing.normalise` runs on the device.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from src.data.cache import read_image

Draw = tuple[int, int, int]  # epoch, position in the epoch, row of the table


@dataclass(frozen=True)
class HiddenMix:
    """Where a forward pass mixes activations: at the input of the network's mix point `point`,
    counted from 1, with this share of the first image. order: partners within the batch, [N];
    None: they are the second half of it."""

    point: int
    share: float
    order: torch.Tensor | None


@dataclass
class Batch:
    """images [N, 3, H, W] · labels [N] · for mixed images also the partner's labels [N] and the
    share of the first image, one number or [N]: the loss is share · L(labels) + (1 − share) ·
    L(partner) · other: as many images that `train.second_sampler` drew · hidden: images are mixed
    inside the network; without an order they are [2N, 3, H, W]."""

    images: torch.Tensor
    labels: torch.Tensor
    partner: torch.Tensor | None = None
    share: float | torch.Tensor = 1.0
    other: "Batch | None" = None
    hidden: HiddenMix | None = None

    def to(self, device: torch.device) -> "Batch":
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            other=None if self.other is None else self.other.to(device),
        )

    def split(self, parts: int) -> list["Batch"]:
        """Micro-batches of equal size, of a batch that is not mixed yet."""
        others = [None] * parts if self.other is None else self.other.split(parts)
        return [
            replace(self, images=images, labels=labels, other=other)
            for images, labels, other in zip(
                self.images.chunk(parts), self.labels.chunk(parts), others, strict=True
            )
        ]


class ImageTable(Dataset):
    """Rows of folds.csv or test.csv as images; rows without a label get -1."""

    def __init__(self, table: pd.DataFrame, transform):
        self.paths = table["path"].to_numpy()
        known = "label" in table
        self.labels = table["label"].to_numpy() if known else np.full(len(table), -1)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw) -> tuple[np.ndarray, int]:
        epoch, position, row = draw
        return self.transform(read_image(self.paths[row]), (epoch, position)), int(self.labels[row])


def collate(items: list[tuple[np.ndarray, int]], streams: int = 1) -> Batch:
    """The first half of the items is the batch and the second its `other`, if there are two."""
    if streams == 2:
        half = len(items) // 2
        return replace(collate(items[:half]), other=collate(items[half:]))
    images = torch.from_numpy(np.stack([image for image, _ in items]))  # [N, H, W, 3]
    labels = torch.tensor([label for _, label in items], dtype=torch.long)
    return Batch(images.permute(0, 3, 1, 2), labels)  # channels_last strides, no copy


class Epochs:
    """A sampler of batches over all epochs, so that workers live as long as the training.

    `orders(epoch)` gives the rows of an epoch for all processes together, [M], and so does `second`
    where a batch has two streams: its draws come after those of the first. Each process takes its
    slice of every batch; positions are global and the second stream's follow the first's, so that
    augmentation is the same for any number of processes and differs between the streams.
    """

    def __init__(self, orders, batch_size: int, rank: int = 0, world: int = 1, second=None):
        self.orders, self.second, self.batch_size = orders, second, batch_size
        self.rank, self.world = rank, world
        self.epoch = 0

    @property
    def streams(self) -> int:
        return 1 if self.second is None else 2

    def __iter__(self) -> Iterator[list[Draw]]:
        order = self.orders(self.epoch)
        rows = order if self.second is None else np.concatenate([order, self.second(self.epoch)])
        size = min(self.batch_size, len(order))
        share = size // self.world
        for start in range(0, len(order) - size + 1, size):
            mine = range(start + self.rank * share, start + (self.rank + 1) * share)
            positions = [p + stream * len(order) for stream in range(self.streams) for p in mine]
            yield [(self.epoch, position, int(rows[position])) for position in positions]

    def __len__(self) -> int:
        order = self.orders(self.epoch)
        return len(order) // min(self.batch_size, len(order))


def train_loader(
    table: pd.DataFrame, transform, epochs: Epochs, workers: int, pin_memory: bool
) -> DataLoader:
    """Batches of one epoch per iteration; set `epochs.epoch` before each."""
    return DataLoader(
        ImageTable(table, transform),
        batch_sampler=epochs,
        num_workers=workers,
        collate_fn=partial(collate, streams=epochs.streams),
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
    )


def eval_loader(
    table: pd.DataFrame,
    transform,
    draws: list[Draw],
    batch_size: int,
    workers: int,
    pin_memory: bool,
) -> DataLoader:
    """The rows that `draws` name, in order; nothing is padded or dropped."""
    batches = [draws[i : i + batch_size] for i in range(0, len(draws), batch_size)]
    return DataLoader(
        ImageTable(table, transform),
        batch_sampler=batches,
        num_workers=min(workers, len(batches)),
        collate_fn=collate,
        pin_memory=pin_memory,
    )
