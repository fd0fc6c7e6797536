"""Stage 6: test logits of any number of experiments of one dataset → submission.csv.

    python 06_ensemble.py --config configs/digits.yaml
    python 06_ensemble.py --config configs/a.yaml configs/b.yaml --out submission.csv
    python 06_ensemble.py --config configs/a.yaml --folds 0    # a one-fold baseline
    python 06_ensemble.py --config configs/a.yaml --solution path/to/solution.csv
    python 06_ensemble.py --config configs/a.yaml --bundle bundle.zip    # for code competitions

Needs 05 of every experiment (and 04, for the member `posthoc`). Runs on any CPU in seconds and
never imports torch; there is nothing here for a GPU to do. Log-probabilities are combined as
`ensemble.combiner` says (by default averaged, with weights by greedy selection on out-of-fold
images); where that does not pass the section `judge`, they are replaced by their mean.
Writes runs/<dataset>/submissions/<experiments joined by +>.csv (in the format of
sample_submission.csv, or of the section `submission`), .npz and .manifest.json, and the report,
runs/<dataset>/report.html. A solution is used to print a score, never to choose.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from src import cli

if TYPE_CHECKING:
    from src.ensemble.ensemble import Result
    from src.ensemble.review import Review

ENDS = ["gain", "gain_low", "gain_high"]


def main() -> None:
    parser = cli.parser(
        __doc__, many_configs=True, folds="folds to judge members by, numbers (default: all)"
    )
    parser.add_argument("--out", metavar="CSV", help="also write the submission to this file")
    parser.add_argument(
        "--solution",
        metavar="CSV",
        help="true class ids of some or all test images: in the submission's columns, a column "
        "per class, or a row per image and class; default: data.solution, if it is there",
    )
    parser.add_argument(
        "--bundle",
        metavar="PATH",
        help="also put weights, code and configs into this directory (or .zip), with a script and "
        "a notebook that run 05 and 06 offline on a directory of hidden test images",
    )
    args = parser.parse_args()
    configs = cli.configs_of(args)

    from src.artifacts.marks import marked  # after the configs are known to be right
    from src.ensemble.ensemble import ensemble
    from src.metrics import short_name
    from src.report.context import gather
    from src.report.page import write_report
    from src.report.stages import format_table, table_of

    experiments = cli.experiments_of(args)
    how = {"overwrite": args.overwrite, "solution": args.solution, "folds": args.folds}
    work = partial(ensemble, configs, experiments, **how)
    if args.dry_run:
        from src.plan import would

        return would("06", configs[0], args, work)
    result = work(out=args.out)
    report = gather(configs[0].dataset, experiments, configs)
    for experiment in report.experiments:
        name = marked(experiment.name, experiment.home)
        cli.say(f"\n{name}, stage by stage, on out-of-fold images")
        table = table_of(report.data, experiment.rows, experiment.config.metric)
        if experiment.gains:
            metric = short_name(experiment.config.metric)
            metric = cli.SHORT.get(metric, metric)
            table[f"gain, {metric}"] = [str(experiment.gains.get(n, "–")) for n in table.index]
        cli.say(experiment.problem or format_table(table))
        for reason in (*experiment.optimism, *filter(None, [experiment.pseudo])):
            cli.say(reason)
    show(result, {e.name: marked(e.name, e.home) for e in report.experiments})
    page = write_report(report)
    cli.say("\n".join(["", *result.expected.lines()]))
    cli.say(f"\nformat:     {result.sheet}")
    if result.flags:
        cli.say(f"unknown:    {result.flags}")
    cli.say(f"submission: {result.submission}" + (f", copied to {args.out}" if args.out else ""))
    cli.say(f"report:     {page}")
    if args.bundle:
        from src.bundle.make import make_bundle  # seldom asked for

        made = make_bundle(configs, experiments, args.folds, Path(args.bundle))
        cli.say(f"bundle:     {made}")


def show(result: Result, names: dict[str, str]) -> None:
    """Members with weights and out-of-fold scores; then the score on the solution.

    names: of the experiments, with their marks
    """
    import pandas as pd

    from src.metrics import gain_text

    table = result.oof.drop(columns=ENDS).rename(columns=cli.SHORT)
    if result.oof["gain"].notna().any():
        table["gain"] = [gain_text(*row) for row in result.oof[ENDS].to_numpy()]
    parts = [member.partition("/") for member in table["member"]]
    table["member"] = [names.get(first, first) + slash + head for first, slash, head in parts]
    cli.print_table(table, "out-of-fold, the ensemble cross-fitted")
    cli.say(f"combiner: {result.choice.method} ({result.choice.reason})")
    cli.say(result.decision.says)
    if result.caveat:
        cli.say(result.caveat)
    if result.shift is not None:
        cli.say(f"label shift: {result.shift}")
    if result.review is not None:
        show_review(result.review)
    if result.score is not None:
        score = pd.DataFrame([result.score]).rename(columns=cli.SHORT)
        cli.print_table(score, f"solution: on {result.scored} of {result.images} test images")


def show_review(review: Review) -> None:
    """How members differ, what each brings, and whether the best one would do."""
    import pandas as pd

    from src.metrics import gain_text

    cli.print_table(
        pd.DataFrame(review.pairs), "two members: how alike, and how alike their errors"
    )
    dropped = pd.DataFrame(review.dropped)
    if len(dropped):
        dropped["brings"] = [gain_text(*row) for row in dropped[ENDS].to_numpy()]
        cli.print_table(dropped.drop(columns=ENDS), "without each member, cross-fitted")
    cli.say(f"\n{review.says}")


if __name__ == "__main__":
    cli.run(main)
