"""The CIFAR recipe: pad by an eighth of the side, take a random crop, maybe mirror.

Its random numbers come from a counter: those of one image are a function of (seed, epoch, position)
and are had for any range of positions at once. So one image on the CPU and a whole batch on the
device (src/data/loader.py) give the same bytes.
"""

import numpy as np

from src.config.augment import Augment

WORDS = 4  # 64-bit numbers per image: one block of Philox4x64 (Salmon et al., SC 2011)


def margin(size: int) -> int:
    """Pixels of zeros on each side."""
    return size // 8


def moves(seed: int, epoch: int, start: int, count: int, size: int, augment: Augment) -> np.ndarray:
    """What happens to the images at positions start … start + count − 1 of an epoch, int64 [N, 4]:
    top and left edge of the crop in the padded image, mirrored left-right, mirrored up-down."""
    bits = np.random.Philox(key=[seed, epoch], counter=[start, 0, 0, 0])
    words = bits.random_raw(WORDS * count).reshape(count, WORDS)
    places = np.uint64(2 * margin(size) + 1)
    top, left, first, second = words.T
    flips = (first % 2 * augment.hflip, second % 2 * augment.vflip)
    return np.stack([top % places, left % places, *flips], 1).astype(np.int64)


def moved(image: np.ndarray, move: np.ndarray) -> np.ndarray:
    """[size, size, 3] uint8 → the same, shifted and mirrored by one row of `moves`."""
    size = len(image)
    pad = margin(size)
    top, left, mirror, upset = move.tolist()
    padded = np.zeros((size + 2 * pad, size + 2 * pad, 3), np.uint8)
    padded[pad : pad + size, pad : pad + size] = image
    crop = padded[top : top + size, left : left + size]
    return np.ascontiguousarray(crop[:: -1 if upset else 1, :: -1 if mirror else 1])
