"""Room for arrays [N, K] that are too large for memory."""

import math
import os
import tempfile

import numpy as np

from src.artifacts import mapped
from src.artifacts.work import RUNS


def space(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """An array to be filled, as from np.empty. From `mapped.LARGE` bytes on it is a file of runs/
    without a name, which is gone with the array or the process: what is not used just now need not
    be in memory. It is in memory where the disk has no room for it, and on systems that cannot
    promise that room (posix_fallocate)."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size or size < mapped.LARGE or not hasattr(os, "posix_fallocate"):
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile(dir=RUNS) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a hole on a full disk would kill us later
            return np.asarray(np.memmap(file, dtype, "r+", shape=shape))
    except OSError:
        return np.empty(shape, dtype)
