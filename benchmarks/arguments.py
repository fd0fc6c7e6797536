"""What the benchmarks that train many methods are told on the command line."""

import argparse
from collections.abc import Collection
from pathlib import Path

from benchmarks.results import RESULTS
from src.errors import UserError


def parser(
    doc: str, config: str, methods: Collection[str], default: list[str]
) -> argparse.ArgumentParser:
    """config: the default · methods: all that are known · default: those that run unless named"""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default=config, metavar="YAML", help="what methods add to")
    add("--methods", nargs="+", choices=list(methods), default=default, metavar="M",
        help=f"default: {'all' if len(default) == len(methods) else 'all but ablations'}; "
        f"known: {', '.join(methods)}")  # fmt: skip
    add("--jobs", type=int, default=1, metavar="N", help="trainings at a time (default: 1)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE",
        help="override keys of the config; needs an --out of its own")  # fmt: skip
    add("--table", action="store_true", help="write the table from what is there")
    add("--out", type=Path, default=RESULTS, metavar="MD", help=f"default: {RESULTS.name}")
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Errors: UserError when scores of changed settings would stand among those of the schedule."""
    args = parser.parse_args(argv)
    if args.set and args.out.resolve() == RESULTS.resolve():
        raise UserError(
            f"--set {' '.join(args.set)} changes what {RESULTS.name} says was trained; write "
            "elsewhere, with --out"
        )
    return args
