"""Which method does one regret least, not knowing the data? From the scores of the method tables.

    python benchmarks/cifar_lt.py --budget cpu --ratios 100 50 10     # what it reads:
    python benchmarks/cifar_lt.py --budget cpu --profile step
    python benchmarks/birds_methods.py
    python benchmarks/birds_methods.py --config configs/digits.yaml --folds 0 1 2 3 4
    python benchmarks/regret.py                                       # nothing is trained

Regret: what the best method of a data set has over this one there, in points of balanced accuracy.
Least worst regret (minimax, Savage 1951) asks that a method be nowhere far behind, and does not
care where it shines. Left out one data set at a time, the choice is made on the others and its
regret on that one shown: what a new competition could expect. A method takes part where all data
sets have a score of it. CIFAR's scores are of its test set, which has as many images of each class;
the others are out of fold.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/regret.py`

from benchmarks.birds_methods import BIRDS, Job, job_config, scores_of
from benchmarks.cifar_methods import row_title
from benchmarks.cifar_table import Section
from benchmarks.judged import PLAIN, TOO_SHORT
from benchmarks.results import RESULTS, distinct, markdown, write_section
from src import cli
from src.errors import UserError

SHOWN = 12  # methods of least worst regret in the table; and cross-entropy
CONFIGS = RESULTS.parents[1] / "configs"
CIFAR = Section(str(CONFIGS / "cifar10_lt.yaml"), "cpu")
BASES = {"birds_lt": "birds_lt_plain", "digits": "digits"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args(argv)
    table, commits = scores(args.out)
    print(write_section("regret", "The least regret", page(table, commits), args.out))


def scores(path: Path = RESULTS) -> tuple[pd.DataFrame, str]:
    """Balanced accuracy in %, methods × data sets, of the methods that all have; and the commits.

    Errors: UserError when fewer than two data sets have scores.
    """
    cifar = CIFAR.scores.read(path)
    cifar = cifar[cifar["epoch"] == "last"]
    columns = {
        f"cifar10_lt {split}": 100 * part.groupby("row")["accuracy"].mean()
        for split, part in cifar.groupby("split")
    }
    commits = [*cifar["git"]]
    for dataset in BASES:
        part = scores_of(dataset).read(path)
        part = part.loc[part.groupby("row")["folds"].transform("max") == part["folds"]]
        if len(part):
            columns[dataset] = 100 * part.set_index("row")["balanced_accuracy"]
            commits += [*part["git"]]
    if len(columns) < 2:
        raise UserError(f"{path.with_name('scores')}: scores of {len(columns)} data sets; run the "
                        "benchmarks that the docstring names first")  # fmt: skip
    return pd.DataFrame(columns).dropna(), distinct(commits)


def regrets(table: pd.DataFrame) -> pd.DataFrame:
    """Points behind the best method of each data set, ≥ 0."""
    return table.max() - table


def least(regret: pd.DataFrame) -> str:
    """The method of least worst regret; of equal ones that of the least mean."""
    both = pd.DataFrame({"worst": regret.max(axis=1).round(1), "mean": regret.mean(axis=1)})
    return both.sort_values(["worst", "mean"]).index[0]


def left_out(table: pd.DataFrame) -> list[dict]:
    """For each data set: what the others choose, and what it regrets there."""
    rows, regret = [], regrets(table)
    for name in table:
        chosen = least(regret.drop(columns=name))
        rows.append({
            "left out": name, "chosen on the others": row_title(chosen, BIRDS),
            "its regret there": regret.loc[chosen, name],
            "regret of cross-entropy": regret.loc[PLAIN, name],
            "best there": row_title(table[name].idxmax(), BIRDS),
        })  # fmt: skip
    return rows


def schedules() -> str:
    """The epochs behind the scores."""
    jobs = {name: Job(str(CONFIGS / f"{file}.yaml"), PLAIN, ()) for name, file in BASES.items()}
    own = {name: job_config(job).train.epochs for name, job in jobs.items()}
    own = {"CIFAR-10-LT": CIFAR.epochs(PLAIN)[0]} | own
    return ", ".join(f"{epochs} epochs of {name}" for name, epochs in own.items())


def page(table: pd.DataFrame, commits: str) -> str:
    regret = regrets(table)
    worst, mean = regret.max(axis=1), regret.mean(axis=1)
    order = pd.DataFrame({"worst": worst.round(1), "mean": mean}).sort_values(["worst", "mean"])
    shown = dict.fromkeys([*order.index[:SHOWN], PLAIN])
    rows = [
        {"method": row_title(name, BIRDS)}
        | {column: regret.loc[name, column] for column in regret}
        | {"worst": worst[name], "mean": mean[name]}
        for name in shown
    ]
    chosen = left_out(table)
    found = max(row["its regret there"] for row in chosen)
    return "\n".join([
        f"`python benchmarks/regret.py`, on the scores of the method tables · trained at {commits}",
        "",
        f"Points of balanced accuracy behind the best of {len(table)} methods, by data set; the "
        f"{SHOWN} of least worst regret, and cross-entropy. Trained in {schedules()}: advice for "
        f"so short a training, which is {TOO_SHORT} methods that are behind in it.",
        "",
        markdown(rows, 1),
        "",
        "Chosen without a data set, and then met with it (worst: "
        f"{found:.1f} points; cross-entropy alone {regret.loc[PLAIN].max():.1f}):",
        "",
        markdown(chosen, 1),
    ])  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
