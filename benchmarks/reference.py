"""configs/METHODS.md: every method with its config, its paper and what it did on our data.

    python benchmarks/reference.py

The effects are computed from benchmarks/scores/, so they are never typed by hand; run it after a
benchmark. A test fails while the two disagree.
"""

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/reference.py`

from benchmarks import fine_grained, longer
from benchmarks.birds_methods import Job, judged_rows, scores_of, too_short
from benchmarks.cifar_methods import BUDGETS
from benchmarks.cifar_table import Section, deviation, values
from benchmarks.judged import PLAIN, TOO_SHORT
from benchmarks.reference_entries import GROUPS
from benchmarks.results import RESULTS, table_line
from src.artifacts.files import write_text
from src.config.read import load_config

DASH = "–"  # not measured
OUT = RESULTS.parents[1] / "configs" / "METHODS.md"
HEAD = """# Methods

Each method is a few lines over the config that you have. Its formula and source stand at the top of
the file named; `--set` takes the same keys; a combination that makes no sense is refused with the
reason. Written by `python benchmarks/reference.py`.

Effects are gains over cross-entropy in points, from
[benchmarks/RESULTS.md](../benchmarks/RESULTS.md), which says how they were measured. CIFAR-10-LT:
test accuracy at 1:100, training from scratch, ± its standard deviation over seeds; without one, of
a single seed, where only differences of several points mean something; in brackets its epochs, as
published where that has been trained. birds_lt: balanced accuracy out of fold ± its standard error,
a short fine-tuning of `mobilenetv2_100`, of fine-grained methods against plain training of as many
epochs; with epochs in brackets, the last of them are the method's, from the weights of plain
training at full size, against plain training that goes on ([longer.py](../benchmarks/longer.py)).
What a method costs, and what plain training makes of as many seconds, stands beside it there.
`too short to judge`: a gain at a short schedule is one there, a loss says that there was no time
([judged.py](../benchmarks/judged.py)). A dash: not measured.
"""
BASE = str(OUT.with_name("birds_lt_plain.yaml"))
WITH_TIME = load_config(BASE).train.epochs + longer.MORE
Cifar = dict[Section, pd.DataFrame]


def render(cifar: Cifar, birds: pd.DataFrame) -> str:
    """METHODS.md. cifar, birds: as `tables`"""
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


def cifar_effect(cifar: Cifar, row: str | None) -> str:
    """Gain over cross-entropy at 1:100 in points, of the means over seeds, ± the standard deviation
    of the method's seeds where it has several, by the first schedule that has both; a dash: none.
    """
    for section, scores in cifar.items():
        own, base = (values(scores, name, "exp100") for name in (row, PLAIN))
        if len(own) and len(base):
            gain = f"{own.mean() - base.mean():+.1f}{deviation(own)} ({section.epochs(row)[0]})"
            return section.verdict(scores, row, "exp100") or gain
    return DASH


def birds_effect(scores: pd.DataFrame, row: str | None) -> str:
    """Gain over cross-entropy in points ± its standard error, on most of the folds measured, by the
    longer schedule that has it; a dash: none."""
    for name, epochs in ((f"longer/{row}", f" ({WITH_TIME})"), (row, "")):
        there = scores[scores["row"] == name].sort_values("folds", key=lambda f: f.str.len())
        if len(there):
            gain, noise, fair = there.iloc[-1][["gain", "noise", "judged"]]
            return f"{100 * gain:+.1f} ± {100 * noise:.1f}{epochs}" if fair else TOO_SHORT
    return DASH


def tables() -> tuple[Cifar, pd.DataFrame]:
    """Scores of CIFAR-10-LT by schedule, longest first, and of birds_lt: of the methods, and of the
    fine-grained ones as fine_grained/<row>, of those with time as longer/<row>. judged: whether a
    line may be."""
    cifar = (Section(str(OUT.with_name("cifar10_lt.yaml")), name) for name in BUDGETS)
    birds, fine = scores_of("birds_lt").read(), fine_grained.SCORES.read()
    short = too_short(Job(BASE, PLAIN, ()))
    for _, part in birds.groupby("folds"):
        fair = judged_rows(part.set_index("row"), short)
        birds.loc[part.index, "judged"] = part["row"].isin(fair)
    fine["judged"] = ~(fine_grained.too_short(BASE) & (fine["gain"] <= 0))
    fine["row"] = "fine_grained/" + fine["row"].astype(str)
    longest = longer.scores_of("birds_lt").read().dropna(subset="gain").assign(judged=True)
    longest["row"] = "longer/" + longest["row"].astype(str)
    every = [table for table in (birds, fine, longest) if len(table)]
    return {section: section.scores.read() for section in cifar}, pd.concat(every)


def main() -> None:
    write_text(OUT, render(*tables()))
    print(f"written to {OUT}")


if __name__ == "__main__":
    main()
