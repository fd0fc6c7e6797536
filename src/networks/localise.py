"""Where the object is: MMAL-Net's attention object location module (AOLM; Zhang et al., MMM 2021,
section 3.2), for a batch at once and without a trip to the host.

F, F': the maps of the last block and of the one before, [D, h, w].

    A = Σ_d |F_d|        M = A > mean of A        M' likewise of F'
    object = bounding box of (largest 8-connected component of M) ∩ M'

The published A = Σ_d F_d is of maps behind a ReLU, where it is the same; behind other layers, whose
values have both signs, the magnitude is what tells a place with an answer from one without. Of
components of equal size it is the one whose first cell comes first in reading order. Where the
intersection is empty, the object is the whole image. Masks are decided in float32.

A box of cells i … j − 1 of a grid with s pixels a cell has the pixels from s i − 1, at least 0, to
s j − 1, as in the authors' code (s = 32): its first pixel is that before its first cell. Where s is
no whole number, the box is rounded outwards.
"""

import torch
from torch.nn import functional as F


@torch.no_grad()
def energy(maps: torch.Tensor) -> torch.Tensor:
    """A: maps [N, D, h, w] of any precision → [N, h, w] float32"""
    return maps.abs().sum(1, dtype=torch.float32)


@torch.no_grad()
def object_boxes(last: torch.Tensor, before: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """AOLM. last, before: maps [N, D, h, w] and [N, D', h, w] of images of `size` (H, W) → boxes
    [N, 1, 4], x0 y0 x1 y1 in pixels, x1 and y1 exclusive."""
    mask = largest_component(above_mean(energy(last))) & above_mean(energy(before))
    return pixels(bounding_cells(mask), tuple(mask.shape[1:]), size)[:, None]


def above_mean(energies: torch.Tensor) -> torch.Tensor:
    """[N, h, w] → bool [N, h, w]"""
    cells = energies.shape[1] * energies.shape[2]
    total = energies.sum((1, 2), keepdim=True)
    return energies > total / cells  # of equal integers exactly their value; `mean` may not be


@torch.no_grad()
def largest_component(mask: torch.Tensor) -> torch.Tensor:
    """The largest 8-connected component of each mask, bool [N, h, w].

    The B = ⌈h/2⌉ ⌈w/2⌉ blocks of 2 × 2 cells are the nodes of a graph, as the cells of one touch
    each other; squaring its adjacency matrix k times tells who is within 2^k steps, and B − 1 steps
    reach everything. All sums are of small integers, exact in float32.
    """
    n, h, w = mask.shape
    of_block = _blocks(h, w, mask.device)  # [B, h, w]
    count = len(of_block)
    own = of_block * mask[:, None]  # [N, B, h, w], the block's cells that are in the mask
    near = F.max_pool2d(own, 3, 1, 1)  # and their neighbours
    with torch.autocast(mask.device.type, enabled=False):  # bfloat16 cannot count to 257
        reach = _bool(own.flatten(2) @ near.flatten(2).mT)  # [N, B, B]
        for _ in range((count - 1).bit_length()):
            reach = _bool(reach @ reach)
        sizes = reach @ own.sum((2, 3))[:, :, None]  # [N, B, 1], cells of the block's component
    by_cell = (own * sizes[..., None]).sum(1).flatten(1)  # [N, h w]
    first = by_cell.argmax(1)  # the first of several
    block = first // w // 2 * ((w + 1) // 2) + first % w // 2
    chosen = reach[torch.arange(n, device=mask.device), block]  # [N, B]
    return (own * chosen[:, :, None, None]).sum(1) > 0


def _blocks(h: int, w: int, device: torch.device) -> torch.Tensor:
    """Which cells each block of 2 × 2 holds: 0 or 1, [B, h, w]"""
    rows = torch.arange(h, device=device) // 2
    columns = torch.arange(w, device=device) // 2
    of_cell = rows[:, None] * ((w + 1) // 2) + columns  # [h, w]
    count = ((h + 1) // 2) * ((w + 1) // 2)
    return (of_cell == torch.arange(count, device=device)[:, None, None]).float()


def _bool(counts: torch.Tensor) -> torch.Tensor:
    return (counts > 0).float()


def bounding_cells(mask: torch.Tensor) -> torch.Tensor:
    """bool [N, h, w] → [N, 4], x0 y0 x1 y1 in cells, x1 and y1 exclusive; all of an empty mask"""
    x0, x1 = _span(mask.any(1))
    y0, y1 = _span(mask.any(2))
    return torch.stack([x0, y0, x1, y1], 1)


def _span(line: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and one after the last place that is true, of [N, n]; from end to end if none is."""
    line = (line | ~line.any(1, keepdim=True)).int()
    return line.argmax(1), line.shape[1] - line.flip(1).argmax(1)


def pixels(cells: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Boxes [..., 4] of whole cells of a grid (h, w) → float32 in pixels of images of size (H, W),
    x1 and y1 exclusive."""
    x0, y0, x1, y1 = cells.unbind(-1)
    (h, w), (height, width) = grid, size
    low = [(x0 * width // w - 1).clamp(min=0), (y0 * height // h - 1).clamp(min=0)]
    high = [-(-x1 * width // w), -(-y1 * height // h)]
    return torch.stack([*low, *high], -1).float()


@torch.no_grad()
def crop(images: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The boxes [N, n, 4] of images [N, 3, H, W], resized to `size` (h, w): [N n, 3, h, w], those
    of an image beside each other. Bilinear, the corner pixels of a box become the corners."""
    x = _between(boxes[..., 0], boxes[..., 2] - 1, size[1], images.shape[3])  # [N, n, w]
    y = _between(boxes[..., 1], boxes[..., 3] - 1, size[0], images.shape[2])  # [N, n, h]
    n, count = boxes.shape[:2]
    shape = (n, count, *size)
    places = torch.stack([x[:, :, None].expand(shape), y[..., None].expand(shape)], -1)
    source = images.float()
    found = F.grid_sample(source, places.flatten(1, 2).to(source.dtype), align_corners=True)
    found = found.unflatten(2, (count, size[0])).transpose(1, 2).flatten(0, 1)
    last = images.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return found.to(images.dtype).contiguous(memory_format=layout)


def _between(first: torch.Tensor, last: torch.Tensor, count: int, pixels: int) -> torch.Tensor:
    """`count` places from pixel `first` to `last`, [...] → [..., count] in [-1, 1], where -1 and 1
    are the first and the last of `pixels`."""
    steps = torch.linspace(0, 1, count, device=first.device)
    place = first[..., None] + (last - first)[..., None] * steps
    return place * (2 / max(pixels - 1, 1)) - 1
