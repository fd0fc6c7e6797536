"""01's scan of the images against the bare work in it, on all cores.

    python benchmarks/scan.py --config configs/birds_lt.yaml

scan  src/prepare/scan.py as 01 runs it, with what makes it safe: chunks that are kept as they come,
      damaged files named, one row per image in order
bare  the same files by a pool of as many processes: read, sha1, decoded to RGB, perceptual hash
The arms take turns over the same training images, without a resized copy; images per second are
medians over the rounds.
"""

import argparse
import hashlib
import io
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import imagehash
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/scan.py`

from benchmarks.results import RESULTS, markdown, provenance, write_section
from src.artifacts.dataset import load_dataset
from src.config.data import Data
from src.config.read import load_config
from src.prepare.scan import CHUNK, scan_images


def read(path: str) -> tuple[str, str]:
    content = Path(path).read_bytes()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return hashlib.sha1(content).hexdigest(), str(imagehash.phash(image))


def bare(paths: list[str], workers: int) -> list[tuple[str, str]]:
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(read, paths, chunksize=CHUNK))


def scan(paths: list[str], data: Data) -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as directory:
        table = scan_images(paths, Path(directory), data)
    return list(zip(table["sha1"], table["phash"], strict=True))


def measured(paths: list[str], data: Data, rounds: int) -> dict[str, list[float]]:
    """Images per second of each round; both arms find the same."""
    arms = {"scan": lambda: scan(paths, data), "bare": lambda: bare(paths, data.workers)}
    found: dict[str, list[float]] = {name: [] for name in arms}
    for n in range(rounds):
        said = {}
        for name in list(arms)[:: -1 if n % 2 else 1]:  # the second one finds the files in memory
            began = time.perf_counter()
            said[name] = arms[name]()
            found[name].append(len(paths) / (time.perf_counter() - began))
        assert said["scan"] == said["bare"]
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/birds_lt.yaml")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.set)
    data = config.data.model_copy(update={"workers": args.workers, "resize": None})
    paths = load_dataset(config.dataset).images["path"].tolist()
    bare(paths, args.workers)  # from here on the files are in memory for both
    found = measured(paths, data, args.rounds)
    ratios = [a / b for a, b in zip(found["scan"], found["bare"], strict=True)]
    rows = [{"arm": name, "images/s": statistics.median(speed)} for name, speed in found.items()]
    body = f"{provenance()}\n\n{markdown(rows, 1)}\n\nscan over bare: "
    body += f"{statistics.median(ratios):.2f} (median of {args.rounds} rounds of {len(paths)} "
    body += f"images, {args.workers} processes)"
    print(write_section("scan", "01: reading every image", body, args.out))


if __name__ == "__main__":
    main()
