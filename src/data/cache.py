"""Decoded images that stay in memory (`data.cache`): opened once per process.

Workers are forked after the images were decoded, so they share them. Every reader of images asks
here first; what is not kept is opened as always.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from src.data.images import load_image
from src.errors import UserError
from src.progress import each

_KEPT: dict[str, np.ndarray] = {}
SAMPLE = 64  # images whose size stands for all
GIB = 2**30


def read_image(path: str) -> np.ndarray:
    """uint8 RGB [H, W, 3], kept or from the file. Errors: as `load_image`."""
    kept = _KEPT.get(path)
    return load_image(path) if kept is None else kept


def keep_images(paths: Iterable[str], threads: int) -> None:
    """Decode the images and keep them for the rest of the process.

    Errors: UserError when they would need more than half of the memory that is free.
    """
    left = sorted(set(paths) - _KEPT.keys())
    if not left:
        return
    sample = [load_image(path) for path in left[:: max(1, len(left) // SAMPLE)]]
    needed = np.mean([image.nbytes for image in sample]) * len(left)
    check_room(needed, free_memory(), f"{len(left)} decoded images", "memory")
    with ThreadPoolExecutor(max(1, threads)) as pool:
        images = zip(left, pool.map(load_image, left), strict=True)
        for path, image in each(images, "decoding images", "img", len(left)):
            _KEPT[path] = image


def forget_images() -> None:
    _KEPT.clear()


def check_room(needed: float, free: float, what: str, where: str) -> None:
    """Errors: UserError when `needed` bytes are more than half of the `free` ones."""
    if needed > free / 2:
        raise UserError(
            f"data.cache={where}: {what} need {needed / GIB:.1f} GiB, and half of the "
            f"{free / GIB:.1f} GiB that are free is the limit. Set data.cache=none, or make a "
            "smaller copy of the images with data.resize and run 01 again."
        )


def free_memory() -> float:
    """Bytes that this process can still take: of the machine, or of its container."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such file, or `max`: no limit
        return free
