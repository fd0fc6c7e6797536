"""Tables of images → batches of tensors.

A batch travels as uint8; `Preprocessing.normalise` runs on the device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from src.data.cache import read_image
from src.errors import UserError

Draw = tuple[int, int, int]  # epoch, position in the epoch, row of the table


@dataclass(frozen=True)
class HiddenMix:
    """Where a forward pass mixes activations: at the input of the network's mix point `point`,
    counted from 1, with this share of the first image. order: partners within the batch, [N];
    None: they are the second half of it."""

    point: int
    share: float
    order: torch.Tensor | None


@dataclass(frozen=True)
class Targets:
    """Images of more than one label, or that count more or less than others: labels [N, m], and how
    much each counts for the loss, shares [N, m]; a row that needs fewer labels has shares of 0."""

    labels: torch.Tensor
    shares: torch.Tensor

    def take(self, rows: torch.Tensor) -> "Targets":
        return Targets(self.labels[rows], self.shares[rows])

    def to(self, device: torch.device) -> "Targets":
        return Targets(self.labels.to(device), self.shares.to(device))


@dataclass
class Batch:
    """images [N, 3, H, W] · labels [N] · for mixed images also the partner's labels [N] and the
    share of the first image, one number or [N]: the loss is share · L(labels) + (1 − share) ·
    L(partner) · other: as many images that `train.second_sampler` drew · hidden: images are mixed
    inside the network; without an order they are [2N, 3, H, W] · rows: of the table of training
    images, [N] · targets: what counts in the place of labels, [N, …], and of partner · teacher:
    logits [N, K] of teachers for the images, or those that were mixed in"""

    images: torch.Tensor
    labels: torch.Tensor
    partner: torch.Tensor | None = None
    share: float | torch.Tensor = 1.0
    other: "Batch | None" = None
    hidden: HiddenMix | None = None
    rows: torch.Tensor | None = None
    targets: Targets | None = None
    partner_targets: Targets | None = None
    teacher: torch.Tensor | None = None
    partner_teacher: torch.Tensor | None = None

    def parts(self) -> list[tuple[torch.Tensor, float | torch.Tensor]]:
        """Labels [N], and by how much of the loss each image counts for them, one number or [N]:
        the loss is the sum over these of share · L(labels)."""
        found = []
        for labels, targets, share in self._sides():
            if targets is None:
                found.append((labels, share))
                continue
            columns = zip(targets.labels.unbind(1), targets.shares.unbind(1), strict=True)
            found += [(column, share * shares) for column, shares in columns]
        return found

    def taught(self) -> list[tuple[torch.Tensor, float | torch.Tensor]]:
        """Logits of teachers, [N, K], and by how much of the loss each image counts for them, one
        number or [N]: as much as for its labels together. Teachers that looked at the mixture say
        one thing of it."""
        masses = [s if t is None else s * t.shares.sum(1) for _, t, s in self._sides()]
        if self.partner_teacher is None:
            return [(self.teacher, sum(masses))]
        return list(zip((self.teacher, self.partner_teacher), masses, strict=True))

    def _sides(self) -> list[tuple[torch.Tensor, Targets | None, float | torch.Tensor]]:
        """Labels, targets and share of the images, and of those that were mixed in."""
        sides = [(self.labels, self.targets, self.share)]
        if self.partner is not None:
            sides.append((self.partner, self.partner_targets, 1 - self.share))
        return sides

    def with_labels(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """All labels, of whatever shape, replaced by what `change` makes of them."""

        def changed(targets: Targets | None) -> Targets | None:
            return targets and replace(targets, labels=change(targets.labels))

        return replace(
            self,
            labels=change(self.labels),
            partner=None if self.partner is None else change(self.partner),
            targets=changed(self.targets),
            partner_targets=changed(self.partner_targets),
        )

    def with_targets(self, targets: Targets) -> "Batch":
        """The batch, and its second stream, with the targets of its rows of the table."""
        other = None if self.other is None else self.other.with_targets(targets)
        return replace(self, other=other, targets=targets.take(self.rows))

    def with_teacher(self, logits: torch.Tensor) -> "Batch":
        """The batch, and its second stream, with what teachers say of its rows; logits: of every
        row of the table."""
        other = None if self.other is None else self.other.with_teacher(logits)
        return replace(self, other=other, teacher=logits[self.rows])

    def to(self, device: torch.device) -> "Batch":
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            rows=None if self.rows is None else self.rows.to(device, non_blocking=True),
            other=None if self.other is None else self.other.to(device),
        )

    def split(self, parts: int) -> list["Batch"]:
        """Micro-batches of equal size, of a batch that is not mixed yet."""
        nothing = [None] * parts
        others = nothing if self.other is None else self.other.split(parts)
        rows = nothing if self.rows is None else self.rows.chunk(parts)
        pieces = zip(self.images.chunk(parts), self.labels.chunk(parts), others, rows, strict=True)
        return [
            replace(self, images=images, labels=labels, other=other, rows=rows)
            for images, labels, other, rows in pieces
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

    def __getitem__(self, draw: Draw) -> tuple[np.ndarray, int, int]:
        epoch, position, row = draw
        image = self.transform(read_image(self.paths[row]), (epoch, position))
        return image, int(self.labels[row]), row

    def __getitems__(self, draws: list[Draw]) -> list[tuple[np.ndarray, int, int]] | UserError:
        """What a loader asks for. A UserError goes to it as a value: torch would make the traceback
        of a worker of it; any other exception is a bug, and keeps its traceback."""
        try:
            return [self[draw] for draw in draws]
        except UserError as error:
            return error


class Loader(DataLoader):
    """torch's, of an ImageTable. Errors: its UserErrors, word for word, also from workers."""

    def __init__(self, table: ImageTable, *, collate_fn, **settings):
        super().__init__(table, collate_fn=partial(_unless_error, collate_fn), **settings)

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _unless_error(collate_fn, items):
    return items if isinstance(items, UserError) else collate_fn(items)


def collate(items: list[tuple[np.ndarray, int, int]], streams: int = 1) -> Batch:
    """The first half of the items is the batch and the second its `other`, if there are two."""
    if streams == 2:
        half = len(items) // 2
        return replace(collate(items[:half]), other=collate(items[half:]))
    images = torch.from_numpy(np.stack([image for image, _, _ in items]))  # [N, H, W, 3]
    labels = torch.tensor([label for _, label, _ in items], dtype=torch.long)
    rows = torch.tensor([row for _, _, row in items], dtype=torch.long)
    return Batch(images.permute(0, 3, 1, 2), labels, rows=rows)  # channels_last strides, no copy


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
) -> Loader:
    """Batches of one epoch per iteration; set `epochs.epoch` before each."""
    return Loader(
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
) -> Loader:
    """The rows that `draws` name, in order; nothing is padded or dropped."""
    batches = [draws[i : i + batch_size] for i in range(0, len(draws), batch_size)]
    return Loader(
        ImageTable(table, transform),
        batch_sampler=batches,
        num_workers=min(workers, len(batches)),
        collate_fn=collate,
        pin_memory=pin_memory,
    )
