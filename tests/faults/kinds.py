"""The kinds of fault. Each is a trial: (world, number of the script, a random generator) → Outcome.

Refused: the first start ended with an error in words, and what it left was made whole by the same
command once the fault was gone. Lost: anything else than identical or refused.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from src.errors import some
from tests.faults.child import SCRIPTS, Fault, start
from tests.faults.world import TIMES, World, contents, differing

IDENTICAL, REFUSED, LOST = "identical", "refused", "lost"
RUNS = Path("runs/digits")
YEAR = 365 * 86400


@dataclass(frozen=True)
class Outcome:
    """result: one of the three · says: what was done, and what is wrong"""

    result: str
    says: str


def settled(world: World, number: int, where: Path, first: int, says: str) -> Outcome:
    """After a fault: the same command again, and what there is then beside what there should be.
    first: the exit status under the fault"""
    if first not in (0, 2, -signal.SIGKILL):
        return Outcome(LOST, f"{says}: status {first}: {world.said[-600:]}")
    status = world.run(number, where)
    if status:
        return Outcome(LOST, f"{says}: then status {status}: {world.said[-600:]}")
    if wrong := differing(contents(where), world.expected(number + 1)):
        return Outcome(LOST, f"{says}: other {some(wrong, 6)}")
    return Outcome(REFUSED if first == 2 else IDENTICAL, says)


# ---- kills -------------------------------------------------------------------------------------


def kill(world: World, number: int, rng: Random) -> Outcome:
    """kill -9 at any time."""
    where, after = world.fresh(number), rng.uniform(0, 1.1 * world.seconds[number])
    first = world.run(number, where, kill_after=after)
    return settled(world, number, where, first, f"killed after {after:.2f} s")


def kill_in_write(world: World, number: int, rng: Random) -> Outcome:
    """kill -9 at any change of the disk, or in the middle of it; half the time in the run after
    it, too."""
    where, points = world.fresh(number), []
    for _ in range(rng.choice((1, 2))):
        points.append(rng.randrange(world.changes[number]))
        first = world.run(number, where, Fault(kill_at=points[-1]))
    return settled(world, number, where, first, f"killed at changes {points}")


# ---- disks -------------------------------------------------------------------------------------


def full_disk(world: World, number: int, rng: Random) -> Outcome:
    """A small tmpfs with room for a part of what the script writes."""
    grown = _pages(world.calm(number + 1)) - _pages(world.calm(number))
    free = int(rng.uniform(0, 1.05) * max(grown, 4096))
    where = world.home / "disk"
    where.mkdir(exist_ok=True)
    with _mounted(where, "-t", "tmpfs", "-o", "size=1g", "tmpfs"):
        world.fresh(number, where / "trial")
        state = os.statvfs(where)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize
        _mount("-o", f"remount,size={(used + free) // 1024}k", where)
        first = world.run(number, where / "trial")
        _mount("-o", "remount,size=1g", where)
        return settled(world, number, where / "trial", first, f"{free} bytes free")


def _pages(directory: Path) -> int:
    sizes = (path.lstat().st_size for path in directory.rglob("*"))
    return sum(-(-size // 4096) * 4096 for size in sizes)


def file_size(world: World, number: int, rng: Random) -> Outcome:
    """A limit of the size of a file, below that of the largest."""
    before, after = (world.calm(n) for n in (number, number + 1))
    new = [
        p for p in after.rglob("*") if p.is_file() and not (before / p.relative_to(after)).exists()
    ]
    limit = max(rng.choice([p.stat().st_size for p in new]) - 1, 2048)
    where = world.fresh(number)
    first = world.run(number, where, Fault(size=limit))
    return settled(world, number, where, first, f"files of at most {limit} bytes")


def read_only(world: World, number: int, rng: Random) -> Outcome:
    """A directory that is mounted read-only, or whose permissions say so, with all in it."""
    where = world.fresh(number)
    inside = [p for p in where.rglob("*") if p.is_dir() and not {"raw", "images"} & {*p.parts}]
    place = rng.choice([where, *inside])
    says = f"read-only: {place.relative_to(where)}"
    if rng.random() < 0.5:
        subprocess.run(["chmod", "-R", "a-w", place], check=True)
        first = world.run(number, where, Fault(bound=True))
        subprocess.run(["chmod", "-R", "u+w", place], check=True)
        return settled(world, number, where, first, f"{says}, by its permissions")
    with _mounted(place, "--bind", place):
        _mount("-o", "remount,bind,ro", place)
        first = world.run(number, where)
    return settled(world, number, where, first, f"{says}, by its mount")


@contextmanager
def _mounted(where: Path, *how):
    _mount(*how, where)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def _mount(*how) -> None:
    subprocess.run(["mount", *map(str, how)], check=True, capture_output=True)


# ---- damage ------------------------------------------------------------------------------------


def damage(world: World, number: int, rng: Random) -> Outcome:
    """A file that an earlier script left truncated, emptied, or with a flipped bit."""
    number = max(number, 1)
    where = world.fresh(number)
    name, path = _some_file(where, rng)
    says, ended = _after_damage(world, number, where, name, path, rng)
    if ended is not None:
        return ended
    wrong = set(differing(contents(where), world.expected(number + 1))) - {name}
    report = where / RUNS / "report.html"  # it says instead of a part why that part is missing
    if wrong == {report.relative_to(where).as_posix()} and f"{name}: damaged" in report.read_text():
        return Outcome(REFUSED, f"{says}, in the report")
    if wrong:
        return Outcome(LOST, f"{says}: other {some(sorted(wrong), 6)}")
    return Outcome(IDENTICAL, says)


def damage_own(world: World, number: int, rng: Random) -> Outcome:
    """A file that the script itself left, in this run or an earlier one."""
    where = world.fresh(number + 1)
    name, path = _some_file(where, rng, world.calm(number))
    says, ended = _after_damage(world, number, where, name, path, rng)
    if ended is not None:
        return ended
    wrong = differing(contents(where), world.expected(number + 1))
    untouched = wrong == [name] and "skipped" in world.said  # the next stage refuses it
    if wrong and not untouched:
        return Outcome(LOST, f"{says}: other {some(wrong, 6)}")
    return Outcome(IDENTICAL, says + (", left as it is" if untouched else ""))


def _after_damage(world: World, number: int, where: Path, name: str, path: Path, rng: Random):
    """Damage the file and run the script: what was done, and the outcome unless it ended well."""
    says = f"{name}: {_damage(path, rng)}"
    status = world.run(number, where)
    if status == 2 and name in world.said.replace("\n  ", " "):
        return says, Outcome(REFUSED, says)
    if status != 0:
        return says, Outcome(LOST, f"{says}: status {status}: {world.said[-600:]}")
    return says, None


def _some_file(where: Path, rng: Random, before: Path | None = None) -> tuple[str, Path]:
    """Any file below runs/, of those not in `before`: first a kind of file, then one of it."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted((where / RUNS).rglob("*")):
        new = before is None or not (before / path.relative_to(where)).exists()
        if path.is_file() and not path.name.endswith(".lock") and new:
            digits = "".join("#" if c.isdigit() else c for c in path.relative_to(where).as_posix())
            kind = digits if path.suffix != ".jpg" else "a copy of an image"
            kinds.setdefault(kind.replace("ncm", "crt"), []).append(path)
    path = rng.choice(kinds[rng.choice(sorted(kinds))])
    return path.relative_to(where).as_posix(), path


def _damage(path: Path, rng: Random) -> str:
    data = bytearray(path.read_bytes())
    how = rng.choice(("emptied", "cut", "flipped", "flipped", "flipped", "flipped"))
    place = rng.randrange(max(len(data), 1))
    if how == "emptied":
        data = b""
    elif how == "cut":
        data = data[:place]
    elif data:
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"{how} at byte {place}"


# ---- clocks and neighbours ---------------------------------------------------------------------


def clock_back(world: World, number: int, rng: Random) -> Outcome:
    """The clock goes back before or during the script; or every file there is from the future."""
    where = world.fresh(number)
    fault = Fault(back=rng.choice((3600, 86400, 30 * YEAR)), jump=rng.choice((0, 1, 3, 9)))
    says = f"back by {fault.back} s at look {fault.jump}"
    if rng.random() < 0.4:
        fault, says = None, "every file is from next year"
        for path in where.rglob("*"):
            os.utime(path, (path.stat().st_mtime + YEAR,) * 2)
    first = world.run(number, where, fault)
    if first == 0 and (wrong := differing(contents(where), world.expected(number + 1))):
        return Outcome(LOST, f"{says}: other {some(wrong, 6)}")
    manifests = [json.loads(p.read_bytes()) for p in where.rglob("*manifest.json")]
    if any(facts.get(name, 0) < 0 for facts in manifests for name in TIMES):
        return Outcome(LOST, f"{says}: took less than no time")
    return settled(world, number, where, first, says)


def two_starts(world: World, number: int, rng: Random) -> Outcome:
    """The same command twice, at once or one a little later."""
    where, wait = world.fresh(number), rng.choice((0, rng.uniform(0, world.seconds[number])))
    first, second = _together(world, (number, number), where, wait)
    if not {first[0], second[0]} <= {0, 2}:
        return Outcome(LOST, f"the second {wait:.2f} s later: {first}, {second}")
    refused = [text for status, text in (first, second) if status == 2]
    if any("works on it" not in text for text in refused):
        return Outcome(LOST, f"the second {wait:.2f} s later: {refused}")
    return settled(world, number, where, 2 if refused else 0, f"the second {wait:.2f} s later")


def too_early(world: World, number: int, rng: Random) -> Outcome:
    """The next script starts while this one writes; then again, once that has ended."""
    number = min(number, len(SCRIPTS) - 2)
    where, wait = world.fresh(number), rng.uniform(0, world.seconds[number])
    first, second = _together(world, (number, number + 1), where, wait)
    says = f"the next {wait:.2f} s later"
    if first[0] != 0:
        return Outcome(LOST, f"{says}: {first}")
    world.said = second[1]
    return settled(world, number + 1, where, second[0], says)


def _together(world: World, numbers: tuple[int, int], where: Path, wait: float) -> list:
    """Status and words of two scripts, of which the second starts `wait` seconds later."""
    one = start(SCRIPTS[numbers[0]], where)
    time.sleep(wait)
    second = (world.run(numbers[1], where), world.said)
    return [one.ended(), second]


KINDS = {
    "kill -9": kill,
    "kill -9 in a write": kill_in_write,
    "full disk": full_disk,
    "file-size limit": file_size,
    "read-only directory": read_only,
    "damaged file of an earlier script": damage,
    "damaged file of its own": damage_own,
    "clock goes back": clock_back,
    "two starts at once": two_starts,
    "started while the one before writes": too_early,
}
MOUNTING = ("full disk", "read-only directory")


def clean(home: Path) -> None:
    for name in ("trial", "disk"):
        shutil.rmtree(home / name, ignore_errors=True)
