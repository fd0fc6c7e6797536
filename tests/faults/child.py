"""One start of a script, in a forked child that has everything imported, with a fault in it.

The script's own file runs, as `__main__`, with its own arguments. A fault is a limit or a clock set
before it starts, or a kill at the n-th point at which it changes the disk.
"""

import builtins
import ctypes
import io
import os
import resource
import runpy
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

SCRIPTS = (
    "01_prepare_folds.py", "02_train_stage1.py", "03_train_stage2.py",
    "04_posthoc_calibrate.py", "05_predict.py", "06_ensemble.py",
)  # fmt: skip
CONFIG = "configs/exp.yaml"
CHANGES = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir")  # of os, on the disk
LONGEST = 300  # seconds until a child is taken to hang
DIGITS = 200


@dataclass(frozen=True)
class Fault:
    """kill_at: which change of the disk is the last, from 0; -1: none, they are counted in the file
    `counted` · back: seconds by which the clock jumps back, at the `jump`-th look at it · size:
    bytes that a file may have · bound: by the permissions of files, as root is not"""

    kill_at: int | None = None
    counted: Path | None = None
    back: float = 0.0
    jump: int = 0
    size: int | None = None
    bound: bool = False


@cache
def preload() -> None:
    """Import what the scripts import when they need it, once for all children; and take few of the
    digits, whose writing would be most of what 01 does."""
    import src.ensemble.ensemble  # noqa: F401
    import src.inference.evidence
    import src.inference.predict
    import src.posthoc.calibrate
    import src.prepare.prepare
    import src.rebalance.stage2
    import src.report.page
    import src.training.stage1  # noqa: F401
    from src.prepare import digits

    every = digits.load_digits
    digits.load_digits = lambda **how: tuple(part[:DIGITS] for part in every(**how))
    digits.RATIO = 5


@dataclass
class Child:
    """words: the pipe of what it says. Not a file: files may be limited or their disk be full."""

    pid: int
    words: int

    def ended(self, kill_after: float | None = None) -> tuple[int, str]:
        """Exit status, -9 for a kill, and what it said. Errors: AssertionError if it hangs."""
        began, said, open_still = time.monotonic(), b"", True
        while open_still:
            left = LONGEST if kill_after is None else kill_after
            left -= time.monotonic() - began
            if left <= 0 or not select.select([self.words], [], [], left)[0]:
                assert kill_after is not None, f"a child has not ended in {LONGEST} s"
                os.killpg(self.pid, signal.SIGKILL)
                kill_after = None
                continue
            said += (more := os.read(self.words, 65536))
            open_still = bool(more)
        os.close(self.words)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), said.decode(errors="replace")


def start(script: str, where: Path, fault: Fault | None = None) -> Child:
    """A child that runs `script` in `where`."""
    preload()
    words, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return Child(pid, words)
    code = 1
    try:
        os.setsid()
        os.dup2(write, 1)
        os.dup2(write, 2)
        os.closerange(3, 64)  # or it would hold the pipes of others
        sys.stdout, sys.stderr = (os.fdopen(n, "w", errors="replace") for n in (1, 2))
        os.chdir(where)
        os.environ["PATH"] = ""  # no git: the commit may change while a campaign runs
        plant(fault or Fault())
        sys.argv = [script, "--config", CONFIG]
        runpy.run_path(str(ROOT / script), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ---- what is planted in the child ---------------------------------------------------------------


def plant(fault: Fault) -> None:
    if fault.kill_at is not None:
        _at_changes(fault)
    if fault.back:
        _turn_back(fault)
    if fault.size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.size, fault.size))
    if fault.bound:
        _give_up_override()


def _at_changes(fault: Fault) -> None:
    """Count changes of the disk and die at one: before a name changes, after a file was opened
    empty, or when half of it is written."""
    seen = [0]

    def point(half: Callable[[], None] = lambda: None) -> None:
        if seen[0] == fault.kill_at:
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        seen[0] += 1
        if fault.counted is not None:
            with plain_open(fault.counted, "w") as file:
                file.write(str(seen[0]))

    def before(change):
        def changed(*args, **kwargs):
            point()
            return change(*args, **kwargs)

        return changed

    plain_open, plain_fsync = builtins.open, os.fsync

    def opened(file, mode="r", *args, **kwargs):
        found = plain_open(file, mode, *args, **kwargs)
        if set(mode) & set("wx"):
            point()
        return found

    def synced(number):
        point(lambda: os.ftruncate(number, os.fstat(number).st_size // 2))
        return plain_fsync(number)

    for name in CHANGES:
        setattr(os, name, before(getattr(os, name)))
    os.fsync, builtins.open, io.open = synced, opened, opened


def _turn_back(fault: Fault) -> None:
    """`time.time` and `time.time_ns` go back, at once or in the middle."""
    looks, true_time, true_ns = [0], time.time, time.time_ns

    def offset() -> float:
        looks[0] += 1
        return fault.back if looks[0] > fault.jump else 0.0

    time.time = lambda: true_time() - offset()
    time.time_ns = lambda: true_ns() - int(offset() * 10**9)


def _give_up_override() -> None:
    """Linux' capabilities 1 and 2, by which root reads and writes whatever the permissions are."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, sets) == 0
    for place in range(3):
        sets[place] &= ~0b110
    assert libc.capset(header, sets) == 0
