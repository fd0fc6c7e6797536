"""Make again what manifests say was made, in a directory of its own, and compare.

    python -m src.rerun runs/birds_lt/plain/posthoc/manifest.json
    python -m src.rerun runs/birds_lt/plain/stage1/fold*/manifest.json --tolerance 1e-3
    python -m src.rerun runs/birds_lt/submissions/plain.manifest.json

Each stage runs again as its script ran then: with the settings in the manifest over the resolved
config.yaml, on the earlier stages' files that are there now, which must be those that it was made
from. Nothing that is there is changed; what is made lies below --into. Every artifact is then
identical (the same bytes), within the tolerance (the same arrays, cells or keys), or differing, and
named. What a clock or a memory gauge said is not compared. Exit status: 0; 1 where some differ.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from src import cli
from src.artifacts.files import read_json
from src.rerun.compare import DIFFERING, IDENTICAL, WITHIN, Verdict, compare
from src.rerun.made import Made, made_by
from src.rerun.workspace import rerun


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m src.rerun",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("manifest", nargs="+", type=Path, help="manifest.json of a stage, or of a submission")
    add(
        "--into",
        type=Path,
        default=Path("runs/.rerun"),
        help="directory below which each stage gets one of its own (default: runs/.rerun)",
    )
    add(
        "--tolerance",
        type=float,
        default=1e-5,
        help="largest difference that is none, of the value and absolutely (default: 1e-5)",
    )
    args = parser.parse_args(argv)
    found = [made_by(path) for path in args.manifest]  # all are sound before any is run
    different = 0
    for made in found:
        new = rerun(made, args.into)
        verdicts = compare(made, new, args.tolerance)
        different += sum(verdict.kind == DIFFERING for verdict in verdicts)
        say(made, new, verdicts)
    if different:
        sys.exit(1)


def say(made: Made, new: Path, verdicts: list[Verdict]) -> None:
    """The table of artifacts, how many are what, and what else is not as it was."""
    cli.print_table(pd.DataFrame([vars(v) for v in verdicts]), f"{made.manifest}: made again")
    kinds = [verdict.kind for verdict in verdicts]
    told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in (IDENTICAL, WITHIN, DIFFERING))
    cli.say(f"{told}; what was made again: {new.parent}")
    now = read_json(new)
    for what in ("git", "versions", "machine"):
        before, after = (_named(facts.get(what, "unknown"), what) for facts in (made.facts, now))
        changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        for name in changed:
            cli.say(f"{name}: {before.get(name, 'none')} then, {after.get(name, 'none')} now")


def _named(value, name: str) -> dict:
    return value if isinstance(value, dict) else {name: value}


if __name__ == "__main__":
    cli.run(main)
