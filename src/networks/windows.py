"""Which parts are worth a look: MMAL-Net's attention part proposal module (APPM; Zhang et al., MMM
2021, section 3.3), for a batch at once and without a trip to the host.

A: energy of the last map of an object, [h, w] (localise.py). All windows of a few shapes (h_r, w_r)
in cells slide over it by one cell:

    score = Σ_d of the average of F_d over the window = average of A over it

Shapes of a similar size are one scale. Of each scale k, N_k windows are kept one after the other:
the best of those that overlap none kept before by IoU > 0.25, the first of equals in the order of
shapes, then reading order. Where none is left, the last one kept stands in again.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from src.networks.localise import energy, pixels

Shape = tuple[int, int]  # cells, height and width
GRID = 14  # cells a side of the maps that the published sets are for
OVERLAP = 0.25
PUBLISHED: dict[str, tuple[tuple[Shape, ...], ...]] = {
    "cub": (
        ((4, 4), (3, 5), (5, 3)),
        ((6, 6), (5, 7), (7, 5)),
        ((8, 8), (6, 10), (10, 6), (7, 9), (9, 7), (7, 10), (10, 7)),
    ),
    "aircraft": (
        ((6, 6), (5, 7), (7, 5)),
        ((8, 8), (6, 10), (10, 6), (7, 9), (9, 7)),
        ((10, 10), (9, 11), (11, 9), (8, 12), (12, 8)),
    ),
}
KEPT = {"cub": (2, 3, 2), "aircraft": (3, 2, 1)}


def fitted(scales: Sequence[Sequence[Shape]], grid: Shape) -> list[list[Shape]]:
    """Published shapes as the same parts of another grid: rounded to whole cells, at least one, and
    each once, in the first scale that has it, unless a scale would be left without any."""
    found: list[list[Shape]] = []
    for shapes in scales:
        scaled = [tuple(_part(n, cells) for n, cells in zip(s, grid, strict=True)) for s in shapes]
        scaled = list(dict.fromkeys(scaled))
        before = [shape for own in found for shape in own]
        found.append([shape for shape in scaled if shape not in before] or scaled)
    return found


def _part(length: int, cells: int) -> int:
    return min(max(math.floor(length * cells / GRID + 0.5), 1), cells)


class PartWindows(nn.Module):
    """The windows of one grid as fixed tables. scales: shapes by scale, none larger than the grid ·
    kept: N_k · size: (H, W) of the images whose maps these are"""

    def __init__(
        self, scales: Sequence[Sequence[Shape]], kept: Sequence[int], grid: Shape, size: Shape
    ):
        super().__init__()
        self.scales, self.kept = [list(shapes) for shapes in scales], tuple(kept)
        self.sizes, boxes = [], []
        for k, shapes in enumerate(self.scales):
            cells = np.concatenate([_sliding(shape, grid) for shape in shapes])
            own = pixels(torch.from_numpy(cells), grid, size)  # [W_k, 4]
            overlaps = torch.from_numpy(iou(own.double().numpy()) > OVERLAP)
            self.register_buffer(f"overlaps{k}", overlaps, persistent=False)
            self.sizes.append(len(own))
            boxes.append(own)
        self.register_buffer("boxes", torch.cat(boxes), persistent=False)  # [W, 4]

    @property
    def count(self) -> int:
        """Parts of an image"""
        return sum(self.kept)

    @torch.no_grad()
    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """The last maps [N, D, h, w] of objects → boxes of their parts [N, n, 4] in pixels of the
        object's image, by scale, x0 y0 x1 y1 with x1, y1 exclusive."""
        return self.boxes[self.choose(self.scores(energy(maps)))]

    def scores(self, energies: torch.Tensor) -> torch.Tensor:
        """[N, h, w] → [N, W]"""
        shapes = [shape for own in self.scales for shape in own]
        means = [F.avg_pool2d(energies[:, None], shape, stride=1) for shape in shapes]
        return torch.cat([mean.flatten(1) for mean in means], 1)

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """[N, W] → [N, n], the windows that are kept"""
        found, start = [], 0
        for k, (count, size) in enumerate(zip(self.kept, self.sizes, strict=True)):
            overlaps = getattr(self, f"overlaps{k}")
            found.append(start + suppress(scores[:, start : start + size], overlaps, count))
            start += size
        return torch.cat(found, 1)


def suppress(scores: torch.Tensor, overlaps: torch.Tensor, count: int) -> torch.Tensor:
    """Non-maximum suppression: scores [N, W] and which windows overlap [W, W] → [N, count]."""
    kept: list[torch.Tensor] = []
    for _ in range(count):
        best, index = scores.max(1)  # the first of several
        if kept:
            index = torch.where(best > -math.inf, index, kept[-1])
        kept.append(index)
        scores = scores.masked_fill(overlaps[index], -math.inf)
    return torch.stack(kept, 1)


def _sliding(shape: Shape, grid: Shape) -> np.ndarray:
    """All places of a window: [places, 4], x0 y0 x1 y1 in cells, in reading order."""
    rows, columns = (np.arange(cells - n + 1) for n, cells in zip(shape, grid, strict=True))
    y, x = (place.ravel() for place in np.meshgrid(rows, columns, indexing="ij"))
    return np.stack([x, y, x + shape[1], y + shape[0]], 1)


def iou(boxes: np.ndarray) -> np.ndarray:
    """[W, 4] → [W, W]; in the authors' code the last pixel belongs to a box, here it is x1 − 1."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / (areas[:, None] + areas[None] - shared)
