"""Tables of images → batches of tensors.

A batch travels as uint8; `Preprocessing.normalise` runs on the device.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from src.data.images import load_image

Draw = tuple[int, int, int]  # epoch, position in the epoch, row of the table


@dataclass
class Batch:
    """images [N, 3, H, W] · labels [N] · for mixed images also the partner's labels [N] and the
    share of the first image: the loss is share · L(labels) + (1 − share) · L(partner)."""

    images: torch.Tensor
    labels: torch.Tensor
    partner: torch.Tensor | None = None
    share: float = 1.0

    def to(self, device: torch.device) -> "Batch":
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )

    def split(self, parts: int) -> list["Batch"]:
        """Micro-batches of equal size."""
        return [
            replace(self, images=images, labels=labels)
            for images, labels in zip(
                self.images.chunk(parts), self.labels.chunk(parts), strict=True
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
        return self.transform(load_image(self.paths[row]), (epoch, position)), int(self.labels[row])


def collate(items: list[tuple[np.ndarray, int]]) -> Batch:
    images = torch.from_numpy(np.stack([image for image, _ in items]))  # [N, H, W, 3]
    labels = torch.tensor([label for _, label in items], dtype=torch.long)
    return Batch(images.permute(0, 3, 1, 2), labels)  # channels_last strides, no copy


class Epochs:
    """A sampler of batches over all epochs, so that workers live as long as the training.

    `orders(epoch)` gives the rows of an epoch for all processes together, [M]. Each process takes
    its slice of every batch; positions are global, so that augmentation is the same for any number
    of processes.
    """

    def __init__(self, orders, batch_size: int, rank: int = 0, world: int = 1):
        self.orders, self.batch_size, self.rank, self.world = orders, batch_size, rank, world
        self.epoch = 0

    def __iter__(self) -> Iterator[list[Draw]]:
        order = self.orders(self.epoch)
        size = min(self.batch_size, len(order))
        share = size // self.world
        for start in range(0, len(order) - size + 1, size):
            mine = range(start + self.rank * share, start + (self.rank + 1) * share)
            yield [(self.epoch, position, int(order[position])) for position in mine]

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
        collate_fn=collate,
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
