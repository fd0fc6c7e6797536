"""Time, memory and disk of the six scripts as images N and classes K grow, to iNaturalist's sizes.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --images 120 --classes 6 --times 1 2 4 --folds 2 --out /tmp/x.md
    python benchmarks/scaling.py --table        # the table from what is there

Fabricated JPEGs of 32 x 32 pixels with a long tail, N / 5 of them for the test; a MobileNetV3 so
small that what grows with N and K is seen, and not convolutions, with 1,024 features as real ones
have. N and K grow together, then each alone. Each script is a process of its own, as a user starts
it, with one thread, and its arrays on the disk, as those of large data sets are
(src/artifacts/mapped.py): seconds that it and its children kept a core busy, which other work on
the machine does not change; their most resident memory together, without the pages of such arrays,
which the system takes back when it needs them; the bytes left below runs/, caches included. Points
that are done are skipped: scores/scaling.csv has them.

Extrapolated are start + N a + K b + N K c (growth.py) fitted to all points, and beside them the
network's passes by the images/s of a real one, measured here on this machine's device.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/scaling.py`

from benchmarks.growth import exponent, fit
from benchmarks.results import RESULTS, Scores, machine, markdown, provenance, write_section
from src.artifacts.files import write_text
from src.artifacts.work import git_state

ROOT = Path(__file__).parents[1]
SCRIPTS = {path.name[:2]: path for path in sorted(ROOT.glob("0[1-6]_*.py"))}
COSTS = ("seconds", "memory_mib", "disk_mb")
SCORES = Scores("scaling", ("stage", "images", "classes", "folds"), COSTS)
TARGETS = {"iNaturalist 2018": (437_513, 8_142), "iNaturalist 2021": (2_686_843, 10_000)}
SWEEPS = {"both": "images", "N": "images", "K": "classes"}  # what grows → by what it is counted
SIDE, RATIO, TEST_SHARE = 32, 50, 5
NAME = "scaled"
POLL = 0.05  # seconds; looking takes some milliseconds itself
STARTED = f"""import runpy, sys
sys.path[:1], sys.argv = [{str(ROOT)!r}], sys.argv[1:]
from src.artifacts import mapped
mapped.LARGE = 0
runpy.run_path(sys.argv[0], run_name="__main__")"""  # a script, with arrays on the disk
CONFIG = {
    "data": {"root": NAME, "workers": 2},
    "bins": {"mode": "terciles"},
    "model": {"backbone": "mobilenetv3_small_050", "pretrained": False, "image_size": SIDE},
    "train": {"epochs": 1, "batch_size": 64, "augment": {"crop": "padded", "color_jitter": 0}},
    "predict": {"tta": {"flip": False}, "evidence": 0},
}


class Point(NamedTuple):
    images: int
    classes: int


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    for point in () if args.table else points(args):
        run_point(point, args)
    kept = SCORES.read(args.out)
    kept = kept[kept["folds"] == str(args.folds)]
    text = body(kept, args) if len(kept) else "Nothing is measured yet."
    print(write_section("scaling", "How the six scripts grow", text, args.out))


def points(args: argparse.Namespace) -> list[Point]:
    """Both grow, then images alone, then classes alone."""
    n, k = args.images, args.classes
    both = [Point(n * t, k * t) for t in args.times]
    alone = [p for t in args.times for p in (Point(n * t, k), Point(n * max(args.times), k * t))]
    return list(dict.fromkeys([*both, *alone]))


def run_point(point: Point, args: argparse.Namespace) -> None:
    """All six scripts at one size, but those that are measured already."""
    home = args.work / f"n{point.images}_k{point.classes}_f{args.folds}"
    key = {"images": str(point.images), "classes": str(point.classes), "folds": str(args.folds)}
    found = SCORES.read(args.out)
    mine = found[(found[list(key)] == pd.Series(key)).all(axis=1)] if len(found) else found
    done = set(mine["stage"])
    if done == set(SCRIPTS):
        return
    if not (home / "config.yaml").is_file():
        done = set()
        fabricate(home, point, args.folds)
    for stage, script in SCRIPTS.items():
        if stage not in done:
            command = [sys.executable, "-c", STARTED, str(script), "--config", "config.yaml"]
            command.append("--overwrite")
            line = {"stage": stage, **key} | measure(command, home)
            SCORES.keep([line | {"device": machine(), "git": git_state()}], args.out)
            print(line, flush=True)
    shutil.rmtree(home)


def fabricate(home: Path, point: Point, folds: int) -> None:
    """Images of noise, none like another, and the config. config.yaml is written last."""
    shutil.rmtree(home, ignore_errors=True)
    rng = np.random.default_rng(0)
    for label, count in enumerate(tail(point)):
        directory = home / NAME / "train" / f"{label:05d}_class"
        directory.mkdir(parents=True)
        for i in range(count):
            noise(rng).save(directory / f"{i:06d}.jpg")
    (home / NAME / "test").mkdir()
    for i in range(max(1, point.images // TEST_SHARE)):
        noise(rng).save(home / NAME / "test" / f"{i:07d}.jpg")
    write_text(home / "config.yaml", json.dumps(CONFIG | {"folds": {"k": folds}}))


def noise(rng: np.random.Generator) -> Image.Image:
    blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def tail(point: Point) -> np.ndarray:
    """Images of each class, [K]: at least two, falling exponentially, N in all."""
    share = RATIO ** -np.linspace(0, 1, point.classes)
    spare = point.images - 2 * point.classes
    ends = np.rint(np.cumsum(share) / share.sum() * spare).astype(int)
    return 2 + np.diff(ends, prepend=0)


def measure(command: list[str], home: Path) -> dict[str, float]:
    """Errors: CalledProcessError when the command fails."""
    before, began = size_of(home / "runs"), busy()
    with open(home / "log.txt", "ab") as log:
        process = psutil.Popen(command, cwd=home, stdout=log, stderr=log)
        most = 0
        while process.poll() is None:
            most = max(most, resident(process, home))
            time.sleep(POLL)
    seconds = busy() - began
    if process.returncode:
        print((home / "log.txt").read_text(errors="replace")[-3000:])
        raise subprocess.CalledProcessError(process.returncode, command)
    disk = (size_of(home / "runs") - before) / 1e6
    return {"seconds": seconds, "memory_mib": most / 2**20, "disk_mb": max(disk, 0.0)}


def busy() -> float:
    """Seconds of a core that ended children, and theirs, took so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident(process: psutil.Process, home: Path) -> int:
    """Bytes of a process and its children together. Linux says how much of each is its share of
    what they have in common (PSS); the files that they map are counted once, as those of the one
    that maps most: what else runs on the machine may map them, too. They are libraries: those below
    `home` are left out. Elsewhere all of each counts."""
    total, files = 0, 0
    try:
        for one in (process, *process.children(recursive=True)):
            about = Path(f"/proc/{one.pid}")
            if (about / "smaps_rollup").is_file():
                share, whole = kibibytes(about / "smaps_rollup"), kibibytes(about / "status")
                total += 1024 * (share["Pss_Anon"] + share["Pss_Shmem"])
                files = max(files, 1024 * (whole["RssFile"] - below(home.resolve(), about)))
            else:
                total += one.memory_info().rss
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError, KeyError):  # it has just ended
        pass
    return total + files


def below(home: Path, about: Path) -> int:
    """KiB of the files in a directory that a process maps and has read or filled; what it changed
    for itself alone is memory."""
    if f"{home}/" not in (about / "maps").read_text():  # smaps takes much longer
        return 0
    found, own = 0, False
    for line in (about / "smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            own = f" {home}/" in line
        elif own and line.startswith(("Rss:", "Anonymous:")):
            size = int(line.split()[1])
            found += size if line.startswith("Rss:") else -size
    return found


def kibibytes(path: Path) -> dict[str, int]:
    """The lines `name: number kB` of a file of Linux."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


def size_of(directory: Path) -> int:
    files = (path for path in directory.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)


def body(kept: pd.DataFrame, args: argparse.Namespace) -> str:
    table = kept.astype({"images": int, "classes": int})
    sizes = ", ".join(f"{n:,} x {k:,}" for n, k in sorted(set(zip(
        table["images"], table["classes"], strict=True))))  # fmt: skip
    parts = [
        provenance(),
        f"Measured at N x K = {sizes}; {args.folds} folds, one epoch, commits "
        f"{', '.join(sorted(set(table['git'])))}. Exponents of c + a · size^p, where both grow "
        "by the same factor and where one does: – where the cost hardly grows within these sizes.",
        markdown(exponents(table), 2),
    ]
    if len(sweeps(table)) < len(SWEEPS):
        why = "each alone was not grown at three sizes: nothing is extrapolated"
        return "\n\n".join([*parts, f"Of images and classes, {why}."])
    rates = args.rates or measured_rates(args)
    told = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    parts.append(
        f"Extrapolated for {args.folds} folds and {args.epochs} epochs, N / {TEST_SHARE} test "
        f"images in {args.views} views, features [N, 1024]. The network's hours are its passes by "
        f"images/s of one core or the GPU ({told}; {args.backbone} at {args.pixels} pixels, and 01 "
        "with JPEGs of 800 x 600); the others are those of everything else."
    )
    for name, (images, classes) in TARGETS.items():
        rows = extrapolated(table, images, classes, rates, args)
        parts.append(f"**{name}**, {images:,} images, K = {classes:,}:\n\n{markdown(rows, 2)}")
    return "\n\n".join(parts)


def sweeps(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Points of which both sizes grow, or one of them alone; those of at least three sizes."""
    n, k = table["images"], table["classes"]
    found = {"both": table[n * k.min() == k * n.min()], "N": table[k == k.min()],
             "K": table[n == n.max()]}  # fmt: skip
    return {by: part for by, part in found.items() if part[SWEEPS[by]].nunique() >= 3}


def exponents(table: pd.DataFrame) -> list[dict]:
    """Per stage: of each cost in each sweep."""
    names = dict(zip(COSTS, ("seconds", "memory", "disk"), strict=True))
    found, rows = sweeps(table), []
    for stage in SCRIPTS:
        row: dict = {"script": stage}
        for by, part in found.items():
            part = part[part["stage"] == stage]
            for cost, name in names.items():
                p = exponent(part[SWEEPS[by]].to_numpy(), part[cost].to_numpy())
                row[f"{name}, {by}"] = "–" if p != p else p
        rows.append(row)
    return rows


def extrapolated(
    table: pd.DataFrame, images: int, classes: int, rates: dict[str, float], args
) -> list[dict]:
    rows = []
    for stage in SCRIPTS:
        part = table[table["stage"] == stage]
        n, k = part["images"].to_numpy(), part["classes"].to_numpy()
        costs = [fit(n, k, part[cost].to_numpy()).at(images, classes) for cost in COSTS]
        rows.append(
            {
                "script": stage,
                "core hours, network": network_seconds(stage, images, rates, args) / 3600,
                "core hours, others": costs[0] / 3600,
                "memory, GiB": costs[1] / 1024,
                "disk, GB": costs[2] / 1000,
            }
        )
    return rows


def network_seconds(stage: str, images: int, rates: dict[str, float], args) -> float:
    """What a real network and real images need in the place of the tiny ones."""
    k, test = args.folds, images / TEST_SHARE
    return {
        "01": (images + test) / rates["01"],
        "02": args.epochs * (k - 1) * images / rates["training"] + images / rates["inference"],
        "03": (k - 1) * images / rates["inference"],
        "05": args.views * k * test / rates["inference"],
    }.get(stage, 0.0)


def measured_rates(args: argparse.Namespace) -> dict[str, float]:
    """images/s of 01's reading on one core, and of training and inference on the device."""
    import timm
    import torch

    from src.prepare.scan import _scan_one

    path = args.work / "photo.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (75, 100, 3), dtype=np.uint8))
    photo.resize((800, 600), Image.Resampling.BICUBIC).save(path, quality=90)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    network = timm.create_model(args.backbone, num_classes=1000).to(device)
    images = torch.randn(args.batch, 3, args.pixels, args.pixels, device=device)

    def inference() -> None:
        with torch.inference_mode():
            network(images).sum().item()

    def training() -> None:
        network(images).logsumexp(1).mean().backward()
        float(next(network.parameters()).grad.sum())

    return {
        "01": 1 / seconds_of(lambda: _scan_one(str(path), None), args.seconds),
        "training": args.batch / seconds_of(training, args.seconds, clock),
        "inference": args.batch / seconds_of(inference, args.seconds, clock),
    }


def seconds_of(work, limit: float, clock=time.process_time) -> float:
    """The median of repetitions within `limit` seconds, after one that warms up."""
    work()
    found, began = [], time.perf_counter()
    while not found or time.perf_counter() - began < limit:
        start = clock()
        work()
        found.append(clock() - start)
    return float(np.median(found))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--images", type=int, default=2_000, help="N at 1 x")
    add("--classes", type=int, default=200, help="K at 1 x")
    add("--times", type=int, nargs="+", default=[1, 2, 4, 8])
    add("--folds", type=int, default=5)
    add("--epochs", type=int, default=30, help="of the extrapolation")
    add("--views", type=int, default=2, help="of 05, of the extrapolation")
    add("--backbone", default="resnet50", help="whose images/s are extrapolated with")
    add("--pixels", type=int, default=224)
    add("--batch", type=int, default=16)
    add("--seconds", type=float, default=10, help="to measure each rate")
    add("--rates", type=json.loads, metavar="JSON",
        help='instead of measuring: {"01": 90, "training": 8, "inference": 25}')  # fmt: skip
    add("--work", type=Path, default=ROOT / "runs" / "scaling", help="where points are made")
    add("--table", action="store_true", help="write the table from what is there")
    add("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    os.environ |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    main()
