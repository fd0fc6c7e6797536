"""04 at full size: time of a grid point against one bare product, and the memory of each step.

    python benchmarks/posthoc.py
    python benchmarks/posthoc.py --steps tau_norm temperature --images 5000 --classes 1000

Features of N images around the centres of K long-tailed classes, a linear head near the centres and
a nearest-class-mean head; a column that tells of the class, and one that does not; two folds. Each
step of src/fusion is chosen, judged and applied by the code that 04 runs, in a process of its own,
so that its peak of resident memory is its own. The measure of time is `features @ weight.T` of all
images, timed in the same process, on as many threads. `joint` is the search over the steps with a
grid at once.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/posthoc.py`

from benchmarks.results import RESULTS, markdown, provenance, write_section
from src.config.read import parse_config
from src.config.schema import Config
from src.fusion import STEPS, build_steps
from src.fusion.step import State
from src.metrics import chunks
from src.posthoc.crossfit import no_steps, try_step
from src.posthoc.inputs import Start
from src.posthoc.joint import NAME, try_jointly

FOLDS = 2
GIB = 2**30


def main() -> None:
    args = arguments()
    if args.child:
        print(json.dumps(measured(args)))
        return
    rows = []
    for name in args.steps:
        command = [sys.executable, __file__, "--child", name, *sizes(args)]
        found = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
        rows.append({"step": name} | found)
        print(rows[-1], flush=True)
    body = f"{provenance()}\n\n{args.images:,} images, {args.classes:,} classes, {args.width:,} "
    body += f"features, float32; {FOLDS} folds. Seconds of a grid point are those of the whole "
    body += "step, cross-fitting and judgement included, over its grid points; of what fits itself "
    body += f"there is one.\n\n{markdown(rows, 2)}"
    print(write_section("posthoc", "04 at full size", body, args.out))


def measured(args: argparse.Namespace) -> dict:
    """One step, in this process."""
    config = settings(args)
    start, bare = fabricate(args.images, args.classes, args.width)
    steps = build_steps(config)
    began = time.perf_counter()
    if args.child == NAME:
        with tempfile.TemporaryDirectory() as studies:
            trial = try_jointly(start, steps, no_steps(start), config, Path(studies))
        points = args.trials * (FOLDS + 1)
    else:
        trial = try_step(steps[0], start, no_steps(start), config)
        points = len(steps[0].candidates() or [None])
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "grid points": points,
        "seconds": seconds,
        "of one product": bare,
        "a grid point, products": seconds / points / bare,
        "peak memory, GiB": peak / GIB,
        "kept": "yes" if trial.kept else trial.reason,
    }


def settings(args: argparse.Namespace) -> Config:
    names = ["tau_norm", "ncm_fusion"] if args.child == NAME else [args.child]
    search = {"trials": args.trials}
    return parse_config(
        {
            "data": {"root": "data/raw/fabricated", "columns": ["country", "month"]},
            "stage2": ["ncm"],
            "posthoc": {"steps": names, "search": search},
        }
    )


def fabricate(images: int, classes: int, width: int) -> tuple[Start, float]:
    """A start head's states by fold, and the seconds of `features @ weight.T` of all images."""
    rng = np.random.default_rng(0)
    counts = np.maximum(1.0 / np.arange(1, classes + 1), 1e-4)
    labels = np.concatenate([np.tile(np.arange(classes), FOLDS), rng.choice(
        classes, max(images - FOLDS * classes, 0), p=counts / counts.sum())])[:images]  # fmt: skip
    fold = np.arange(images) // -(-images // FOLDS)
    centres = rng.standard_normal((classes, width), dtype=np.float32)
    near = centres + rng.standard_normal((classes, width), dtype=np.float32)
    heads = {
        "stage1": ("linear", {"weight": near, "bias": np.zeros(classes, np.float32)}),
        "ncm": ("cosine", {"weight": centres, "scale": np.float32(20)}),
    }
    class_counts = np.bincount(labels, minlength=classes)
    bins = np.arange(classes) * 3 // classes
    states, seconds = {}, 0.0
    for k in range(FOLDS):
        y = labels[fold == k]
        f = rng.standard_normal((len(y), width), dtype=np.float32)
        for rows in chunks(len(y), width):
            f[rows] = f[rows] * 8 + centres[y[rows]]
        f /= np.float32(width**0.5)
        began = time.perf_counter()
        logits = f @ near.T
        seconds += time.perf_counter() - began
        given = {"stage1": logits}
        columns = {"country": (y * 7 + rng.integers(3, size=len(y))) % 200}  # tells of the class
        columns["month"] = rng.integers(12, size=len(y))
        columns = {name: values.astype(str) for name, values in columns.items()}
        states[k] = State(logits, f, "stage1", heads, class_counts, given, columns, bins)
    return Start("stage1", states, {k: labels[fold == k] for k in range(FOLDS)}), seconds


def sizes(args: argparse.Namespace) -> list[str]:
    keys = ("images", "classes", "width", "trials")
    return [part for key in keys for part in (f"--{key}", str(getattr(args, key)))]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", nargs="+", default=[*STEPS, NAME], choices=[*STEPS, NAME])
    parser.add_argument("--images", type=int, default=25_000)
    parser.add_argument("--classes", type=int, default=8_142)
    parser.add_argument("--width", type=int, default=2_048)
    parser.add_argument("--trials", type=int, default=20, help="of the joint search, per study")
    parser.add_argument("--child", help="measure this step here; what the benchmark calls itself")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
