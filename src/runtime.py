"""Device, precision, seeds and processes: what torch needs to know about the machine."""

import ctypes
import hashlib
import sys

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from src.errors import UserError

MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def start(
    precision: str,
    tracker: str = "none",
    project_dir: str | None = None,
    *,
    keep_memory: bool = True,
) -> Accelerator:
    """One Accelerator per script: device, autocast, processes, tracker.

    keep_memory: see `keep_freed_memory`; on a CPU only.
    """
    if precision == "auto":
        good = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if good else "fp32"
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError(
            "train.precision=fp16 needs a GPU, and torch finds none here; use bf16, fp32 or auto"
        )
    if keep_memory and not torch.cuda.is_available():
        keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    return Accelerator(
        mixed_precision=MIXED[precision],
        cpu=not torch.cuda.is_available(),
        log_with=None if tracker == "none" else tracker,
        project_dir=project_dir,
    )


def emulated(accelerator: Accelerator) -> str:
    """A note where autocast has no instructions for its numbers and makes everything slower; ""
    elsewhere."""
    if accelerator.mixed_precision != "bf16" or accelerator.device.type != "cpu":
        return ""
    if torch.backends.cpu.get_cpu_capability() != "AVX2":  # AVX512, ARM and POWER know bf16
        return ""
    return (
        "train.precision=bf16: this CPU has no instructions for bf16 (AVX2, not AVX-512), so "
        "convolutions are several times slower than in fp32; train.precision=auto takes fp32 here"
    )


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of returning them to the system.

    Activations are freed and asked for again in every step; by default each round trip is a system
    call and a page fault per 4 KiB. The `plain` arm of benchmarks/throughput.py runs without this.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, which has its own ways
        return
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)


def seed_all(*parts: int | str) -> int:
    """Seed torch, numpy and random from a tuple such as (seed, "fold0", epoch, rank)."""
    text = "/".join(map(str, parts)).encode()
    value = int.from_bytes(hashlib.sha256(text).digest()[:4], "little")
    set_seed(value)
    return value


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of all processes below each other, on all of them; each holds as many."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows of all processes below each other; processes may hold different numbers of rows."""
    parts = gather_object([arrays])
    return {name: np.concatenate([part[name] for part in parts]) for name in arrays}
