"""Stage 6: test logits of any number of experiments of one dataset → submission.csv.

    python 06_ensemble.py --config configs/digits.yaml
    python 06_ensemble.py --config configs/a.yaml configs/b.yaml --out submission.csv
    python 06_ensemble.py --config configs/a.yaml --solution path/to/solution.csv

Needs 05 of every experiment (and 04, for the member `posthoc`). Runs on any CPU in seconds and
never imports torch; there is nothing here for a GPU to do. Log-probabilities are combined as
`ensemble.combiner` says (by default averaged, with weights by greedy selection on out-of-fold
images); where that does not pass the section `judge`, they are replaced by their mean.
Writes runs/<dataset>/submissions/<experiments joined by +>.csv (in the format of
sample_submission.csv, or of the section `submission`), .npz and .manifest.json, and the report,
runs/<dataset>/report.html. A solution is used to print a score, never to choose.
"""

from pathlib import Path

import pandas as pd

from src import cli
from src.artifacts.marks import marked
from src.config.read import load_config
from src.ensemble.ensemble import Result, ensemble
from src.ensemble.review import Review
from src.metrics import gain_text, short_name
from src.report.context import gather
from src.report.page import write_report
from src.report.stages import format_table, table_of

ENDS = ["gain", "gain_low", "gain_high"]
SHORT = {"accuracy": "overall", "balanced_accuracy": "balanced"}


def main() -> None:
    parser = cli.parser(__doc__, many_configs=True)
    parser.add_argument("--out", metavar="CSV", help="also write the submission to this file")
    parser.add_argument(
        "--solution",
        metavar="CSV",
        help="true class ids of some or all test images: in the submission's columns, a column "
        "per class, or a row per image and class; default: data.solution, if it is there",
    )
    args = parser.parse_args()
    configs = [load_config(path, args.set) for path in args.config]
    experiments = [Path(path).stem for path in args.config]
    result = ensemble(
        configs, experiments, overwrite=args.overwrite, out=args.out, solution=args.solution
    )
    report = gather(configs[0].dataset, experiments, configs)
    for experiment in report.experiments:
        name = marked(experiment.name, experiment.home)
        print(f"\n{name}, stage by stage, on out-of-fold images")
        table = table_of(report.data, experiment.rows, experiment.config.metric)
        if experiment.gains:
            metric = short_name(experiment.config.metric)
            metric = SHORT.get(metric, metric)
            table[f"gain, {metric}"] = [experiment.gains.get(name, "–") for name in table.index]
        print(experiment.problem or format_table(table))
        for reason in (*experiment.optimism, *filter(None, [experiment.pseudo])):
            print(reason)
    show(result, {e.name: marked(e.name, e.home) for e in report.experiments})
    print(f"\nformat:     {result.sheet}")
    if result.flags:
        print(f"unknown:    {result.flags}")
    print(f"submission: {result.submission}" + (f", copied to {args.out}" if args.out else ""))
    print(f"report:     {write_report(report)}\n")
    print("\n".join(result.expected.lines()))


def show(result: Result, names: dict[str, str]) -> None:
    """Members with weights and out-of-fold scores; then the score on the solution.

    names: of the experiments, with their marks
    """
    table = result.oof.drop(columns=ENDS).rename(columns=SHORT)
    if result.oof["gain"].notna().any():
        table["gain"] = [gain_text(*row) for row in result.oof[ENDS].to_numpy()]
    parts = [member.partition("/") for member in table["member"]]
    table["member"] = [names.get(first, first) + slash + head for first, slash, head in parts]
    cli.print_table(table, "out-of-fold, the ensemble cross-fitted")
    print(f"combiner: {result.choice.method} ({result.choice.reason})")
    print(result.decision.says)
    if result.shift is not None:
        print(f"label shift: {result.shift}")
    if result.review is not None:
        show_review(result.review)
    if result.score is not None:
        score = pd.DataFrame([result.score]).rename(columns=SHORT)
        cli.print_table(score, f"solution: on {result.scored} of {result.images} test images")


def show_review(review: Review) -> None:
    """How members differ, what each brings, and whether the best one would do."""
    cli.print_table(
        pd.DataFrame(review.pairs), "two members: how alike, and how alike their errors"
    )
    dropped = pd.DataFrame(review.dropped)
    if len(dropped):
        dropped["brings"] = [gain_text(*row) for row in dropped[ENDS].to_numpy()]
        cli.print_table(dropped.drop(columns=ENDS), "without each member, cross-fitted")
    print(f"\n{review.says}")


if __name__ == "__main__":
    cli.run(main)
