"""configs/METHODS.md: every method with its config, its paper and what it did on our data.

    python benchmarks/reference.py

The effects are computed from benchmarks/scores/, so they are never typed by hand; run it after a
benchmark. A test fails while the two disagree.
"""

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/reference.py`

from benchmarks.birds_methods import scores_of
from benchmarks.cifar_table import Section, deviation, values
from benchmarks.fine_grained import SCORES as FINE_GRAINED
from benchmarks.reference_entries import GROUPS
from benchmarks.results import RESULTS, table_line
from src.artifacts.files import write_text

DASH = "–"  # not measured
OUT = RESULTS.parents[1] / "configs" / "METHODS.md"
HEAD = """# Methods

Each method is a few lines over the config that you have. Its formula and source stand at the top of
the file named; `--set` takes the same keys; a combination that makes no sense is refused with the
reason. Written by `python benchmarks/reference.py`.

Effects are gains over cross-entropy in points, from
[benchmarks/RESULTS.md](../benchmarks/RESULTS.md), which says how they were measured. CIFAR-10-LT:
test accuracy at 1:100, a short training from scratch, ± its standard deviation over seeds; without
one, of a single seed, where only differences of several points mean something. birds_lt: balanced
accuracy out of fold ± its standard error, a short fine-tuning of `mobilenetv2_100`, of
fine-grained methods against plain training of as many epochs; what they cost, and what plain
training makes of as many seconds, stands beside it there. A dash: not measured.
"""


def render(cifar: pd.DataFrame, birds: pd.DataFrame) -> str:
    """METHODS.md. cifar, birds: lines of benchmarks/scores/"""
    lines = [HEAD]
    names = ["method", "when to use it", "config", "CIFAR-10-LT", "birds_lt", "paper", "code"]
    for group, entries in GROUPS.items():
        lines += [f"## {group}", "", table_line(names), table_line(["---"] * len(names))]
        for e in entries:
            effects = [cifar_effect(cifar, e.row), birds_effect(birds, e.row)]
            code = f"[{Path(e.code).name}](../{e.code})"
            lines.append(table_line([e.name, e.use, f"`{e.config}`", *effects, e.paper, code]))
        lines.append("")
    return "\n".join(lines)


def cifar_effect(scores: pd.DataFrame, row: str | None) -> str:
    """Gain over cross-entropy at 1:100 in points, of the means over seeds, ± the standard deviation
    of the method's seeds where it has several; a dash: not measured."""
    own, base = (values(scores, name, "exp100") for name in (row, "ce"))
    if not (len(own) and len(base)):
        return DASH
    return f"{own.mean() - base.mean():+.1f}{deviation(own)}"


def birds_effect(scores: pd.DataFrame, row: str | None) -> str:
    """Gain over cross-entropy in points ± its standard error, on most of the folds measured."""
    there = scores[scores["row"] == row].sort_values("folds", key=lambda f: f.str.len())
    if not len(there):
        return DASH
    gain, noise = there.iloc[-1][["gain", "noise"]]
    return f"{100 * gain:+.1f} ± {100 * noise:.1f}"


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lines of CIFAR-10-LT with the CPU budget, and of birds_lt: of the methods, and of the
    fine-grained ones as fine_grained/<row>."""
    fine = FINE_GRAINED.read()
    fine["row"] = "fine_grained/" + fine["row"].astype(str)
    birds = [table for table in (scores_of("birds_lt").read(), fine) if len(table)]
    return Section("configs/cifar10_lt.yaml", "cpu").scores.read(), pd.concat(birds)


def main() -> None:
    write_text(OUT, render(*tables()))
    print(f"written to {OUT}")


if __name__ == "__main__":
    main()
