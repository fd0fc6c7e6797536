"""Two artifacts of one name: the same bytes, the same values within a tolerance, or not."""

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.numpy

from src.artifacts.files import read_arrays, read_json, read_table, sha256
from src.config.tree import flatten
from src.errors import UserError, some
from src.rerun.made import Made

IDENTICAL, WITHIN, DIFFERING = "identical", "within tolerance", "differing"
CLOCKS = ("seconds", "images_per_second", "peak_memory_mib")  # columns of metrics.csv


@dataclass(frozen=True)
class Verdict:
    """artifact: its name in the manifest · kind: one of the three · says: what differs"""

    artifact: str
    kind: str
    says: str = ""


def compare(made: Made, new: Path, tolerance: float) -> list[Verdict]:
    """Every output of a manifest with that of the same name beside the manifest `new`."""
    old, now = made.facts["outputs"], read_json(new, {"outputs": dict})["outputs"]
    found = []
    for name in sorted(old.keys() | now.keys()):
        if name not in now or name not in old:
            found.append(Verdict(name, DIFFERING, f"only {'then' if name in old else 'now'}"))
        elif old[name] == now[name]:
            found.append(Verdict(name, IDENTICAL))
        else:
            then = made.manifest.parent / name
            found.append(_compare(name, then, old[name], new.parent / name, tolerance))
    return found


def _compare(name: str, then: Path, digest: str, now: Path, tolerance: float) -> Verdict:
    if not then.is_file() or sha256(then) != digest:
        why = "is missing" if not then.is_file() else "was changed since"
        return Verdict(name, DIFFERING, f"the earlier one {why}, so that only hashes were compared")
    try:
        a, b = values(then), values(now)
    except (UserError, ValueError, OSError) as error:
        return Verdict(name, DIFFERING, str(error))
    if a is None or b is None:
        return Verdict(name, DIFFERING, "other bytes; its values cannot be compared")
    if a.keys() != b.keys():
        return Verdict(name, DIFFERING, f"has or lacks {some(sorted(a.keys() ^ b.keys()))}")
    gaps = {key: _gap(a[key], b[key]) for key in a}
    worst = max(gaps, key=gaps.get, default=None)
    told = "" if worst is None else f"most in {worst}: {gaps[worst]:.2g}"
    same = worst is None or gaps[worst] <= tolerance
    return Verdict(name, WITHIN if same else DIFFERING, told)


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """The largest |a − b| / max(1, |a|); infinity where that is not all that differs."""
    if a.shape != b.shape or "f" not in (kinds := a.dtype.kind + b.dtype.kind):
        same = a.shape == b.shape and bool((a == b).all())
        return 0.0 if same else float("inf")
    if not set(kinds) <= set("fiub"):
        return float("inf")
    a, b = a.astype(float), b.astype(float)
    odd = ~(np.isfinite(a) & np.isfinite(b))
    if not ((a[odd] == b[odd]) | (np.isnan(a[odd]) & np.isnan(b[odd]))).all():
        return float("inf")
    gap = np.abs(a - b)[~odd] / np.maximum(1, np.abs(a[~odd]))
    return float(gap.max(initial=0.0))


def values(path: Path) -> dict[str, np.ndarray] | None:
    """Arrays, columns or keys by name; None for a file of another kind."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".npz"):
        return read_arrays(path)
    if name.endswith(".safetensors"):
        return safetensors.numpy.load_file(path)
    if name.endswith(".csv"):
        table = read_table(path)
        return {c: _column(table[c]) for c in table if c not in CLOCKS}
    if name.endswith(".json"):
        return {key: _array(value) for key, value in flatten(read_json(path)).items()}
    if path.suffix == ".gz":
        digest = hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
        return {"content": np.array(digest)}
    return None


def _column(cells: pd.Series) -> np.ndarray:
    """Numbers only where some cell is a fraction: ids and labels are the same or not."""
    numbers = pd.to_numeric(cells.replace("", "nan"), errors="coerce").to_numpy(float)
    all_numbers = not (np.isnan(numbers) & ~cells.str.lower().isin(["", "nan"])).any()
    fractions = cells.str.contains(r"\d\.\d|\de-\d").any()
    return numbers if all_numbers and fractions else cells.to_numpy(str)


def _array(value) -> np.ndarray:
    try:
        found = np.array(value)
        return found if found.dtype.kind in "fiubU" else np.array(json.dumps(value))
    except ValueError:  # lists of other lengths
        return np.array(json.dumps(value))
