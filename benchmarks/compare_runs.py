"""Two directories of runs, made by two versions of the code: which results are the same bits?

    git worktree add /tmp/before <commit>           # and run 01 … 06 there, and here
    python benchmarks/compare_runs.py /tmp/before/runs runs

Compares every array of oof.npz, predict/*.npz and submissions/*.npz, all heads, the parameters and
scores of posthoc.json, and submissions/*.csv. Prints what differs; the exit status is 1 where
something does.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/compare_runs.py`

from src.artifacts.files import read_arrays
from src.artifacts.heads import load_head

PATTERNS = (
    "**/oof.npz",
    "**/predict/*.npz",
    "**/head*.safetensors",
    "**/posthoc.json",
    "**/submissions/*.npz",
    "**/submissions/*.csv",
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args(argv)
    names = sorted({p.relative_to(args.before) for g in PATTERNS for p in args.before.glob(g)})
    same, differing = 0, []
    for name in names:
        found = list(differences(args.before / name, args.after / name))
        same += not found
        differing += [f"{name}: {text}" for text in found]
    print(f"{same} of {len(names)} files hold the same, bit by bit")
    print("\n".join(differing), end="\n" if differing else "")
    return int(bool(differing))


def differences(before: Path, after: Path) -> Iterator[str]:
    if not after.is_file():
        yield "is missing"
    elif before.suffix == ".npz":
        yield from of_arrays(read_arrays(before), read_arrays(after))
    elif before.suffix == ".safetensors":
        (kind, old), (now, new) = load_head(before), load_head(after)
        yield from of_arrays(old, new) if kind == now else [f"{kind} is {now} now"]
    elif before.suffix == ".json":
        yield from of_trees(json.loads(before.read_text()), json.loads(after.read_text()))
    elif before.read_bytes() != after.read_bytes():
        rows = zip(before.read_text().splitlines(), after.read_text().splitlines(), strict=False)
        yield f"{sum(a != b for a, b in rows)} lines differ"


def of_arrays(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> Iterator[str]:
    for name, array in old.items():
        if name not in new or new[name].shape != array.shape:
            yield f"{name} {array.shape} is {new[name].shape if name in new else 'missing'}"
        elif not np.array_equal(array, new[name]):
            if array.dtype.kind != "f":
                yield f"{name} differs"
            else:
                yield f"{name} differs by up to {np.abs(array - new[name]).max():.3g}"


def of_trees(old, new, place: str = "") -> Iterator[str]:
    """Values that differ; keys that are new, and sentences, are passed over."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() - {"reason"}:
            value = old[key]
            yield from of_trees(value, new.get(key), f"{place}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from of_trees(*pair, f"{place}.{i}")
    elif old != new:
        yield f"{place}: {str(old)[:120]} is {str(new)[:120]}"


if __name__ == "__main__":
    sys.exit(main())
