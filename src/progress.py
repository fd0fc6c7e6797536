"""How far what takes long has come, and when it will be done.

On a terminal a bar; elsewhere (a log file, SLURM) a plain line where nothing was said for half a
minute, so that a log shows that a run lives and does not fill with bars. One process of a launch
speaks.

    with progress(len(table), "fold0 features") as bar:
        for batch in loader:
            …
            bar.update(len(batch))
"""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from src import cli
from src.cli import WIDTH, is_main_process

EVERY = 30.0  # seconds without a word before a line
UPDATES = 6  # that a probe measures
PATIENCE = 60.0  # seconds: a probe waits so long for what it does not measure
T = TypeVar("T")
_probe: list["Probe"] = []  # while `--dry-run` measures


class progress:  # noqa: N801 (read as a verb: `with progress(…)`)
    """total: units of work · label: what it is; None: silent. `update` costs a look at a clock."""

    def __init__(self, total: int, label: str | None, unit: str = "img"):
        self.total, self.label, self.unit, self.done, self.updates = total, label, unit, 0, 0
        self.silent = label is None or not is_main_process()
        self.began = time.monotonic()
        self.bar = None
        if not self.silent and sys.stderr.isatty():
            columns = {"dynamic_ncols": True} if _narrow() else {"ncols": WIDTH}
            self.bar = tqdm(total=total, desc=label, unit=unit, leave=False, **columns)

    def __enter__(self) -> "progress":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, units: int = 1) -> None:
        self.done, self.updates = self.done + units, self.updates + 1
        if _probe and self.label is not None:
            _probe[-1].look(self)
        if self.bar is not None:
            self.bar.update(units)
        elif not self.silent and (now := time.monotonic()) - cli.said_at >= EVERY:
            cli.say(self.line(now - self.began))

    def line(self, seconds: float) -> str:
        """seconds: since the work began"""
        rate, share = self.done / max(seconds, 1e-9), 100 * self.done // max(self.total, 1)
        pace = f"{rate:.0f} {self.unit}/s" if rate >= 10 else f"{1 / max(rate, 1e-9):.2g} s each"
        left = duration(max(self.total - self.done, 0) / max(rate, 1e-9))
        done = f"{self.done}/{self.total} {self.unit} ({share} %)"
        return f"{self.label}: {done}, {pace}, {left} left"


def each(items: Iterable[T], label: str | None, unit: str, total: int | None = None) -> Iterator[T]:
    """The items one by one, counted as each is done with. total: where they have no length"""
    with progress(len(items) if total is None else total, label, unit) as bar:
        for item in items:
            yield item
            bar.update()


class Reached(Exception):
    """`--dry-run` came to work that takes long. The first update is a warm-up and not counted;
    where it is the only one there is nothing else. size: bytes of what it would write, if known"""

    def __init__(self, work: progress, seconds: float, units: int):
        super().__init__(work.label)
        self.label, self.unit, self.total = work.label, work.unit, work.total
        self.each, self.units, self.size = seconds / max(units, 1), units, None


class Probe:
    """Lets the real code run into its main work, measures some of it there and stops it. units: of
    that; other work on the way is done, unless it would take longer than PATIENCE."""

    def __init__(self, *units: str, updates: int = UPDATES):
        self.units, self.updates = units, updates
        self.first: dict[int, tuple[float, int]] = {}  # by progress: when, and how many units

    def __enter__(self) -> "Probe":
        _probe.append(self)
        return self

    def __exit__(self, *error) -> None:
        _probe.remove(self)

    def look(self, work: progress) -> None:
        now = time.monotonic()
        since, before = self.first.setdefault(id(work), (now, work.done))
        seconds, units = now - since, work.done - before
        if not units:  # the first
            seconds, units = now - work.began, work.done
        main = work.unit in self.units
        ended = work.done >= work.total or work.updates >= self.updates or seconds > PATIENCE / 6
        whole = seconds / units * work.total
        if (main and ended) or (not main and seconds > 2 and whole > PATIENCE):
            raise Reached(work, seconds, units)


def duration(seconds: float) -> str:
    """4 ms, 41 s, 12 min, 3.5 h, 2.1 days."""
    for size, name, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 2 * size or (size == 3600 and seconds >= size):
            return f"{seconds / size:.{digits}f} {name}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _narrow() -> bool:
    """Whether the terminal has fewer columns than lines of ours may have."""
    return shutil.get_terminal_size().columns < WIDTH
