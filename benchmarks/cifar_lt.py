"""Long-tailed CIFAR: every method of stages 1 and 2 beside the published figures.

    python benchmarks/cifar_lt.py --budget cpu    # exp 1:100, two cores, 2 hours
    python benchmarks/cifar_lt.py --budget published --methods ce balanced_softmax ldam_drw bbn
                                                  # 200 epochs without a GPU, hours a row
    python benchmarks/cifar_lt.py --budget gpu --selected --seeds 0 1 2 --jobs 6    # one GPU
    python benchmarks/cifar_lt.py --budget gpu --selected --ratios 50 10
    python benchmarks/cifar_lt.py --budget gpu --selected --profile step --ablations
    python benchmarks/cifar_lt.py --budget cpu --methods ce ldam_drw  # these alone
    python benchmarks/cifar_lt.py --budget cpu --table                # nothing is trained

Needs data/raw/cifar10 (../shared/data/cifar10.zip, unpacked there). Trains through the functions of
01, 02, 03 and 05; finished work is skipped and a stopped run continues. Writes its section of
benchmarks/RESULTS.md after every job, from all scores under runs/ and those kept in
benchmarks/scores/; other text there is kept. The test set is scored and never used to choose
anything.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/cifar_lt.py`

from benchmarks import arguments
from benchmarks.cifar_jobs import Job, job_config, run_job
from benchmarks.cifar_methods import BUDGETS, METHODS
from benchmarks.cifar_table import Section, write_section
from benchmarks.pool import run_all
from src import cli
from src.errors import UserError
from src.prepare.prepare import prepare


def main(argv: list[str] | None = None) -> None:
    """Errors: UserError when a job failed; the others are finished first."""
    args = parse(argv)
    section = Section(args.config, args.budget)
    jobs, missing = planned(args)
    if not args.table:
        for config in {job.split: job_config(job) for job in jobs}.values():
            prepare(config)
    failed = {}
    for job, problem in run_all(run_job, [] if args.table else jobs, args.jobs):
        if problem:
            failed[f"{job.experiment}, {job.split}"] = problem
        print(f"{job.experiment}, {job.split}: {problem or 'done'}", flush=True)
        write_section(args.out, section, missing | failed)
    print(f"\n{write_section(args.out, section, missing | failed)}\n\nwritten to {args.out}")
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} jobs failed: {'; '.join(failed)}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    default = [name for name, method in METHODS.items() if not method.ablation]
    parser = arguments.parser(__doc__, "configs/cifar10_lt.yaml", METHODS, default)
    add = parser.add_argument
    add("--budget", choices=list(BUDGETS), default="cpu", help="the schedule (default: cpu)")
    add("--ablations", action="store_true", help="the rows of the ablation tables, too")
    add("--profile", choices=["exp", "step"], default="exp", help="shape of the tail")
    add("--ratios", nargs="+", type=float, default=[100.0], metavar="R", help="largest class over "
        "the smallest (default: 100)")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[0], metavar="S", help="default: 0")
    add("--selected", action="store_true", help="also train each method without fold 0 and keep "
        "the epoch that is best on it")  # fmt: skip
    return arguments.parse(parser, argv)


def planned(args: argparse.Namespace) -> tuple[list[Job], dict[str, str]]:
    """Jobs in the order of the table; and methods that the product does not take, with why."""
    ablations = [name for name, method in METHODS.items() if method.ablation]
    wanted = [*args.methods, *(ablations if args.ablations else ())]
    names = dict.fromkeys(METHODS[name].same_as or name for name in wanted)
    kinds = (False, True) if args.selected else (False,)
    jobs, missing = [], {}
    for seed in args.seeds:
        for split in (f"{args.profile}{ratio:g}" for ratio in args.ratios):
            for name in names:
                for kind in kinds:
                    job = Job(args.config, args.budget, name, split, seed, tuple(args.set), kind)
                    try:
                        job_config(job)
                        jobs.append(job)
                    except UserError as error:
                        missing[METHODS[name].title] = str(error)
    return jobs, missing


if __name__ == "__main__":
    cli.run(main)
