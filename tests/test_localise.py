"""AOLM and APPM against per-image loops in float64, written from the formulae."""

from collections import deque
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from src.networks.localise import crop, energy, largest_component, object_boxes, pixels
from src.networks.windows import KEPT, PUBLISHED, PartWindows, fitted, suppress

GRIDS = [(1, 1), (1, 6), (5, 1), (2, 2), (3, 4), (4, 3), (4, 4), (5, 7), (7, 7), (14, 14), (9, 13)]


# ---- slow references: one image, loops ---------------------------------------------------------


def slow_components(mask: np.ndarray) -> list[set]:
    """8-connected components in the order of their first cells, by flood fill."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        left.remove(start)
        component, queue = {start}, deque([start])
        while queue:
            y, x = queue.popleft()
            for cell in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                if cell in left:
                    left.remove(cell)
                    component.add(cell)
                    queue.append(cell)
        found.append(component)
    return found


def slow_largest(mask: np.ndarray) -> set:
    return max(slow_components(mask), key=len, default=set())  # max keeps the first of equals


def slow_pixels(y0, x0, y1, x1, grid, size) -> list[float]:
    """Cells from y0, x0 to before y1, x1: pixels s i − 1, at least 0, to s j − 1, both included."""
    sy, sx = size[0] / grid[0], size[1] / grid[1]
    low = [max(np.floor(sx * x0) - 1, 0), max(np.floor(sy * y0) - 1, 0)]
    return [*low, np.ceil(sx * x1), np.ceil(sy * y1)]


def slow_object(last: np.ndarray, before: np.ndarray, size) -> list[float]:
    energies = [np.abs(m.astype(np.float64)).sum(0) for m in (last, before)]
    grid = energies[0].shape
    first, second = (e > e.mean() for e in energies)
    cells = [cell for cell in slow_largest(first) if second[cell]]
    if not cells:
        return slow_pixels(0, 0, *grid, grid, size)
    y, x = zip(*cells, strict=True)
    return slow_pixels(min(y), min(x), max(y) + 1, max(x) + 1, grid, size)


def slow_iou(a, b) -> float:
    """Of boxes whose last pixel is x1 − 1: the + 1 is for that."""
    width = min(a[2], b[2]) - 1 - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - 1 - max(a[1], b[1]) + 1
    shared = width * height if width > 0 and height > 0 else 0
    areas = [(c[2] - 1 - c[0] + 1) * (c[3] - 1 - c[1] + 1) for c in (a, b)]
    return shared / (sum(areas) - shared)


def slow_parts(maps: np.ndarray, scales, kept, size) -> list[list[float]]:
    energies = np.abs(maps.astype(np.float64)).sum(0)
    (h, w), parts = energies.shape, []
    for shapes, count in zip(scales, kept, strict=True):
        windows = []
        for sh, sw in shapes:
            for y in range(h - sh + 1):
                for x in range(w - sw + 1):
                    score = energies[y : y + sh, x : x + sw].mean()
                    windows.append((score, slow_pixels(y, x, y + sh, x + sw, (h, w), size)))
        found = []
        while len(found) < count:
            if windows:
                best = max(windows, key=lambda window: window[0])  # the first of equals
                box = best[1]
                windows = [v for v in windows if slow_iou(v[1], box) <= 0.25]
            found.append(box)
        parts += found
    return parts


def random_maps(rng, grid, count, spread: int) -> torch.Tensor:
    """Small whole numbers of both signs, so that every precision holds them and many are equal."""
    return torch.from_numpy(rng.integers(-spread, spread + 1, (count, 5, *grid))).float()


# ---- AOLM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
def test_largest_component_of_random_masks(grid):
    """Empty ones, full ones, single cells and ties are among them."""
    rng = np.random.default_rng(0)
    masks = np.stack([rng.random(grid) < share for share in np.linspace(0, 1, 40)])
    single = np.zeros(grid, bool)
    single[tuple(rng.integers(grid))] = True
    masks = np.concatenate([masks, single[None]])
    found = largest_component(torch.from_numpy(masks))
    for mask, own in zip(masks, found.numpy(), strict=True):
        assert {tuple(map(int, cell)) for cell in np.argwhere(own)} == slow_largest(mask)


def snake(h: int, w: int) -> np.ndarray:
    """Every second row, joined at alternating ends: the longest way through a grid."""
    mask = np.zeros((h, w), bool)
    mask[::2] = True
    for i, row in enumerate(range(1, h - 1, 2)):
        mask[row, -1 if i % 2 == 0 else 0] = True
    return mask


@pytest.mark.parametrize("grid", [(13, 13), (14, 14), (1, 40), (40, 1), (21, 6), (32, 31)])
def test_the_ends_of_the_longest_way_are_one_component(grid):
    mask = snake(*grid)
    assert len(slow_components(mask)) == 1
    assert (largest_component(torch.from_numpy(mask)[None])[0].numpy() == mask).all()
    broken = mask.copy()
    broken[grid[0] // 2, grid[1] // 2] = False
    found = largest_component(torch.from_numpy(broken)[None])[0].numpy()
    assert {tuple(map(int, cell)) for cell in np.argwhere(found)} == slow_largest(broken)


def test_of_equal_components_it_is_the_one_that_begins_first():
    mask = torch.zeros(1, 5, 6, dtype=torch.bool)
    mask[0, 3:5, 0] = mask[0, 1:3, 4] = True
    found = largest_component(mask)[0].nonzero().tolist()
    assert found == [[1, 4], [2, 4]]


def test_components_are_counted_exactly_in_mixed_precision():
    """257 cells against 256, which are one number in bfloat16."""
    mask = torch.zeros(1, 8, 70, dtype=torch.bool)
    mask[0, :, :32] = mask[0, :, 34:66] = mask[0, 0, 66] = True
    with torch.autocast("cpu", torch.bfloat16):
        assert largest_component(mask)[0].sum() == 257


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_object_boxes_are_those_of_the_formula(grid, dtype):
    rng = np.random.default_rng(1)
    for size in ((32 * grid[0], 32 * grid[1]), (50, 75)):
        for spread in (1, 9):
            last, before = (random_maps(rng, grid, 6, spread).to(dtype) for _ in range(2))
            found = object_boxes(last, before, size)
            assert found.shape == (6, 1, 4) and found.dtype == torch.float32
            want = [
                slow_object(a.double().numpy(), b.double().numpy(), size)
                for a, b in zip(last, before, strict=True)
            ]
            assert found[:, 0].tolist() == want


def test_an_object_by_hand():
    """Rows 3 to 5, columns 4 to 9 of the 14 × 14 cells of 448 pixels: from 32 · 4 − 1 on."""
    last = torch.zeros(1, 3, 14, 14)
    last[:, :, 3:6, 4:10] = 1
    last[:, :, 12, 0:3] = 9  # brighter and smaller, so it does not count
    assert object_boxes(last, last, (448, 448)).tolist() == [[[127, 95, 320, 192]]]
    half = last.clone()
    half[:, :, :, 7:10] = 0  # the block before sees the left half
    assert object_boxes(last, half, (448, 448)).tolist() == [[[127, 95, 224, 192]]]


def test_without_an_object_it_is_the_whole_image():
    """No cell above the mean, none in both maps, nothing that is finite."""
    left, right = torch.zeros(2, 1, 4, 4, 6).unbind()
    left[..., 0], right[..., 5] = 1, 1
    flat = torch.full_like(left, 0.1)
    whole = [[[0, 0, 96, 64]]]
    for last, before in ((left, right), (flat, flat), (flat * 0, left), (flat * torch.nan, left)):
        assert object_boxes(last, before, (64, 96)).tolist() == whole


def test_masks_are_decided_in_float32_whatever_the_precision_of_the_map():
    """Sums of many channels that differ by less than bfloat16 can tell."""
    maps = torch.ones(1, 2048, 3, 3, dtype=torch.bfloat16)
    maps[0, 0, 1, 1] = 2
    assert energy(maps)[0, 1, 1] == 2049
    assert object_boxes(maps, maps, (96, 96)).tolist() == [[[31, 31, 64, 64]]]


def test_an_image_has_the_object_that_it_has_alone():
    rng = np.random.default_rng(2)
    last, before = (random_maps(rng, (7, 7), 9, 4) for _ in range(2))
    together = object_boxes(last, before, (224, 224))
    alone = [object_boxes(last[i : i + 1], before[i : i + 1], (224, 224)) for i in range(9)]
    assert together.tolist() == torch.cat(alone).tolist()


# ---- crops -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20, 28), (7, 5), (1, 1)])
def test_a_crop_is_the_slice_of_its_image_resized(size):
    rng = np.random.default_rng(3)
    images = torch.randn(3, 3, 24, 30).contiguous(memory_format=torch.channels_last)
    low = rng.integers(0, (30, 24), (3, 4, 2))
    high = rng.integers(low + 1, np.broadcast_to((31, 25), low.shape))
    boxes = torch.from_numpy(np.concatenate([low, high], 2)).float()
    found = crop(images, boxes, size)
    assert found.shape == (12, 3, *size)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for i, (x0, y0, x1, y1) in enumerate(boxes.flatten(0, 1).int().tolist()):
        piece = images[i // 4 : i // 4 + 1, :, y0:y1, x0:x1]
        want = F.interpolate(piece, size, mode="bilinear", align_corners=True)
        torch.testing.assert_close(found[i], want[0], atol=2e-5, rtol=1e-4)


def test_the_whole_image_cut_out_is_the_image():
    images = torch.randn(2, 3, 224, 224)
    boxes = torch.tensor([0.0, 0, 224, 224]).expand(2, 1, 4)
    torch.testing.assert_close(crop(images, boxes, (224, 224)), images, atol=1e-4, rtol=1e-4)


# ---- APPM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, counts", [("cub", [361, 241, 315]), ("aircraft", [241, 235, 115])])
def test_the_published_windows_of_448_pixels(name, counts):
    scales = fitted(PUBLISHED[name], (14, 14))
    assert [tuple(shapes) for shapes in scales] == list(PUBLISHED[name])
    windows = PartWindows(scales, KEPT[name], (14, 14), (448, 448))
    assert windows.sizes == counts and len(windows.boxes) == sum(counts)
    h, w = PUBLISHED[name][0][0]
    assert windows.boxes[0].tolist() == [0, 0, 32 * w, 32 * h]
    h, w = PUBLISHED[name][0][-1]
    last = [32 * (14 - w) - 1, 32 * (14 - h) - 1, 448, 448]
    assert windows.boxes[counts[0] - 1].tolist() == last


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("grid", [*GRIDS, (28, 28), (15, 15)])
def test_published_windows_fit_every_grid(name, grid):
    scales = fitted(PUBLISHED[name], grid)
    assert len(scales) == 3 and all(scales)
    for shapes, own in zip(PUBLISHED[name], scales, strict=True):
        assert len(set(own)) == len(own) <= len(shapes)
        assert all(1 <= h <= grid[0] and 1 <= w <= grid[1] for h, w in own)
    PartWindows(scales, KEPT[name], grid, (32 * grid[0], 32 * grid[1]))


def test_windows_of_half_the_grid_by_hand():
    """3 · 7 / 14 = 1.5 is rounded up; what an earlier scale has is not there again."""
    assert fitted(PUBLISHED["cub"], (7, 7)) == [
        [(2, 2), (2, 3), (3, 2)],
        [(3, 3), (3, 4), (4, 3)],
        [(4, 4), (3, 5), (5, 3), (4, 5), (5, 4)],
    ]
    assert fitted(PUBLISHED["cub"], (1, 1)) == [[(1, 1)]] * 3


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_are_those_of_the_formula(grid, name, dtype):
    """With ties, and where a scale has fewer windows apart from each other than it keeps."""
    rng = np.random.default_rng(4)
    size = (32 * grid[0], 24 * grid[1])
    scales = fitted(PUBLISHED[name], grid)
    windows = PartWindows(scales, KEPT[name], grid, size)
    for spread in (1, 9) if grid != (14, 14) else (3,):
        maps = random_maps(rng, grid, 3, spread).to(dtype)
        found = windows(maps)
        assert found.shape == (3, windows.count, 4)
        for own, boxes in zip(maps, found.tolist(), strict=True):
            assert boxes == slow_parts(own.double().numpy(), scales, KEPT[name], size)


def test_many_random_sets_of_windows():
    rng = np.random.default_rng(5)
    for _ in range(60):
        grid = tuple(rng.integers(1, 8, 2).tolist())
        scales = [
            [tuple(rng.integers(1, np.array(grid) + 1).tolist()) for _ in range(rng.integers(1, 4))]
            for _ in range(rng.integers(1, 4))
        ]
        kept = rng.integers(1, 5, len(scales)).tolist()
        size = (16 * grid[0], 16 * grid[1])
        maps = random_maps(rng, grid, 2, 2)
        found = PartWindows(scales, kept, grid, size)(maps)
        for own, boxes in zip(maps, found.tolist(), strict=True):
            assert boxes == slow_parts(own.double().numpy(), scales, kept, size)


def test_suppression_by_hand():
    """Window 1 is best; 0 overlaps it; 2 and 3 are equal and overlap each other; then none is left
    and the last one kept stands in."""
    overlaps = torch.eye(4, dtype=torch.bool)
    overlaps[0, 1] = overlaps[1, 0] = overlaps[2, 3] = overlaps[3, 2] = True
    scores = torch.tensor([[5.0, 6, 1, 1], [6.0, 5, 1, 2]])
    assert suppress(scores, overlaps, 4).tolist() == [[1, 2, 2, 2], [0, 3, 3, 3]]


def test_an_overlap_of_exactly_a_quarter_is_kept():
    """Cells of one pixel: windows 0 and 2 are the pixels 0, 1 and 1, 2, 3; they share 1 of 4."""
    windows = PartWindows([[(1, 2)]], [2], (1, 5), (1, 5))
    assert windows.boxes.tolist() == [[0, 0, 2, 1], [0, 0, 3, 1], [1, 0, 4, 1], [2, 0, 5, 1]]
    maps = torch.tensor([9.0, 9, 5, 5, 0]).reshape(1, 1, 1, 5)  # 9, 7, 5, 2.5
    assert windows(maps)[0].tolist() == [[0, 0, 2, 1], [1, 0, 4, 1]]


# ---- no trip to the host -----------------------------------------------------------------------


def located(last, before, images, windows):
    boxes = object_boxes(last, before, (224, 224))
    objects = crop(images, boxes, (224, 224))
    return crop(objects, windows(last), (112, 112))


class NoCopies(TorchDispatchMode):
    """Raises where a tensor changes its device."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        if op is torch.ops.aten._to_copy.default and out.device != args[0].device:
            raise AssertionError(f"from {args[0].device} to {out.device}")
        return out


@contextmanager
def far_away():
    """Fake tensors have no values: whatever needs one on the host, or a shape that depends on one,
    raises. They are said to be on a GPU, so that a tensor of the host among them raises, too."""
    with torch.backends.cudnn.flags(enabled=False), FakeTensorMode(), NoCopies():
        yield


def test_nothing_waits_for_the_device():
    def build():
        return PartWindows(fitted(PUBLISHED["cub"], (7, 7)), (2, 3, 2), (7, 7), (224, 224))

    tables, windows = dict(build().named_buffers()), build()
    with far_away():
        for name, table in tables.items():
            own = torch.empty(table.shape, dtype=table.dtype, device="cuda")
            windows.register_buffer(name, own, persistent=False)
        maps = torch.empty(3, 8, 7, 7, device="cuda")
        images = torch.empty(3, 3, 224, 224, device="cuda")
        found = located(maps, maps, images, windows)
        assert found.shape == (21, 3, 112, 112) and found.device.type == "cuda"


@pytest.mark.parametrize(
    "look",
    [
        lambda mask: mask.max().item(),
        lambda mask: mask.tolist(),
        lambda mask: mask.nonzero(),
        lambda mask: mask[mask],
        lambda mask: mask.cpu(),
        lambda mask: mask & torch.ones(3, 7, dtype=torch.bool),
        lambda mask: [row for row in mask.float() if row.sum() > 1],
    ],
)
def test_that_test_notices_what_does(look):
    with far_away(), pytest.raises((RuntimeError, AssertionError)):
        look(torch.empty(3, 7, dtype=torch.bool, device="cuda"))


def test_no_gradient_passes_through_a_choice():
    maps = torch.randn(2, 4, 7, 7, requires_grad=True)
    windows = PartWindows(fitted(PUBLISHED["cub"], (7, 7)), (2, 3, 2), (7, 7), (224, 224))
    found = located(maps, maps, torch.randn(2, 3, 224, 224), windows)
    assert not found.requires_grad and not windows(maps).requires_grad


def test_pixels_by_hand():
    cells = torch.tensor([[0, 1, 2, 3]])
    assert pixels(cells, (3, 2), (48, 64)).tolist() == [[0, 15, 64, 48]]
    assert pixels(cells, (3, 3), (50, 50)).tolist() == [[0, 15, 34, 50]]  # 16.67 a cell, outwards
