"""A tiny competition, the six scripts undisturbed on it, and whether a run came out the same."""

import hashlib
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from src.rerun.compare import CLOCKS
from tests.faults.child import CONFIG, SCRIPTS, Fault, start

SETTINGS = """
data: {source: digits, root: data/raw/digits, near_duplicates: null, workers: 0, limit: 50,
  resize: 24}
folds: {k: 2}
model: {backbone: cifar_resnet20, pretrained: false, image_size: 16, crop_pct: 1.0}
train: {epochs: 2, warmup_epochs: 0, eval_every: 1, batch_size: 32, optimizer: sgd, lr: 0.05,
  ema: 0.9, augment: {crop: padded, hflip: false, rotate: 0, color_jitter: 0}}
stage2: [{head: crt, epochs: 1}, {head: ncm}]
predict: {tta: {flip: true}, keep_views: true}
"""
TIMES = {"seconds", "cpu_seconds", "train_seconds"}  # keys of manifests
TIMED = ("metrics.csv",)  # tables with columns of times
OTHERS = ("last.pt",)  # a checkpoint with times in it, which nobody reads once the work is finished


@dataclass
class World:
    """home: calm/0 … calm/6, the state before each script and after the last, and trial/.
    seconds, changes: of each script undisturbed; changes of the disk"""

    home: Path
    seconds: list[float]
    changes: list[int]
    said: str = ""

    def calm(self, number: int) -> Path:
        return self.home / "calm" / str(number)

    def expected(self, number: int) -> dict[str, str]:
        return contents(self.calm(number))

    def fresh(self, number: int, where: Path | None = None) -> Path:
        """A copy of the state before script `number`."""
        where = where or self.home / "trial"
        shutil.rmtree(where, ignore_errors=True)
        shutil.copytree(self.calm(number), where, dirs_exist_ok=True)
        return where

    def run(
        self, number: int, where: Path, fault: Fault | None = None, kill_after: float | None = None
    ) -> int:
        """The exit status; what it said is in `said`."""
        status, self.said = start(SCRIPTS[number], where, fault).ended(kill_after)
        return status


def build(home: Path, about: str) -> World:
    """The undisturbed run, made once for each `about` (the commit)."""
    facts = home / "calm.json"
    if facts.is_file() and (found := json.loads(facts.read_text()))["about"] == about:
        return World(home, found["seconds"], found["changes"])
    shutil.rmtree(home / "calm", ignore_errors=True)
    facts.unlink(missing_ok=True)
    world = World(home, [], [])
    config = world.calm(0) / CONFIG
    config.parent.mkdir(parents=True)
    config.write_text(SETTINGS)
    for number in range(len(SCRIPTS)):
        where = world.fresh(number, world.calm(number + 1))
        began, counted = time.monotonic(), home / "counted"
        assert world.run(number, where, Fault(kill_at=-1, counted=counted)) == 0, world.said
        world.seconds.append(round(time.monotonic() - began, 2))
        world.changes.append(int(counted.read_text()))
    kept = {"about": about, "seconds": world.seconds, "changes": world.changes}
    facts.write_text(json.dumps(kept))
    return world


def contents(where: Path) -> dict[str, str]:
    """The digest of every file but locks, up to the times in it; and every directory."""
    found = {}
    for path in sorted(where.rglob("*")):
        name = path.relative_to(where).as_posix()
        if path.name.endswith(".lock") or path.name in OTHERS:
            continue
        found[name] = "directory" if path.is_dir() else _digest(path)
    return found


def _digest(path: Path) -> str:
    if path.name.endswith("manifest.json"):
        data = json.dumps(_timeless(json.loads(path.read_bytes()))).encode()
    elif path.name in TIMED:
        table = pd.read_csv(path)
        data = table.drop(columns=[*CLOCKS], errors="ignore").to_csv().encode()
    else:
        data = path.read_bytes()
    if path.name == "report.html":
        data = re.sub(rb"<time.*?</time>|\d[\d.,]* (s|min|h)\b", b"some time", data)
    return hashlib.sha256(data).hexdigest()


def _timeless(tree):
    if isinstance(tree, list):
        return [_timeless(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kept = {k: v for k, v in tree.items() if k not in TIMES and Path(k).name not in TIMED}
    return {k: _timeless(v) for k, v in kept.items()}


def differing(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Names that are in one alone, or not the same."""
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]
