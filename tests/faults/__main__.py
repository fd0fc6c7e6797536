"""The campaign: so many tries of each kind of fault, spread over the six scripts.

    python -m tests.faults --tries 100             all kinds; goes on where it was stopped
    python -m tests.faults --tries 6 --kinds damage --out /tmp/a.md
    python -m tests.faults --tries 0               the table of what is in benchmarks/scores

Each try is a line of <home>/tries.csv, known by commit, kind, seed and number. The table goes to
benchmarks/RESULTS.md, its lines per script to benchmarks/scores/faults.csv. Full disks and
read-only directories need mounts, in a namespace of this command's own; they are left out where
that is not allowed.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from random import Random

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked child must find no threads

import pandas as pd

from benchmarks.results import RESULTS, Scores, distinct, machine, markdown, write_section
from src.artifacts.files import read_table, write_table
from src.artifacts.work import git_state
from tests.conftest import ROOT
from tests.faults.child import SCRIPTS
from tests.faults.kinds import IDENTICAL, KINDS, LOST, MOUNTING, REFUSED, Outcome, clean
from tests.faults.world import World, build

RESULTS_OF = (IDENTICAL, REFUSED, LOST)
SCORES = Scores("faults", ("kind", "script"), ("tries", *RESULTS_OF), ("git",))
COLUMNS = ["kind", "seed", "number", "script", "result", "says"]
INSIDE = "FAULTS_IN_OWN_MOUNTS"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--tries", type=int, default=100, help="of each kind (default: 100)")
    parser.add_argument("--kinds", nargs="+", default=[], metavar="WORD", help="those with a WORD")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "faults", metavar="DIR")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table's file, Markdown")
    args = parser.parse_args()
    with_mounts = in_own_mounts()
    kinds = [k for k in KINDS if not args.kinds or any(word in k for word in args.kinds)]
    if not with_mounts and (left := [kind for kind in kinds if kind in MOUNTING]):
        print(f"mounts are not allowed here; left out: {', '.join(left)}")
        kinds = [kind for kind in kinds if kind not in MOUNTING]
    args.home.mkdir(parents=True, exist_ok=True)
    tries = pd.DataFrame(columns=COLUMNS)
    if args.tries:
        world = build(args.home.resolve(), git_state())
        tries = campaign(world, kinds, args.tries, args.seed)
    print(written(tries, args.out))
    return int((tries["result"] == LOST).any())


def in_own_mounts() -> bool:
    """Start this command again in a namespace where mounts are its own, and end with it."""
    if INSIDE in os.environ:
        return os.environ[INSIDE] == "yes"
    user = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    unshare = ["unshare", "--mount", *user]
    try:
        allowed = subprocess.run([*unshare, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    os.environ[INSIDE] = "yes" if allowed else "no"
    if allowed:
        os.execvp("unshare", [*unshare, sys.executable, *sys.orig_argv[1:]])
    return False


def campaign(world: World, kinds: list[str], tries: int, seed: int) -> pd.DataFrame:
    """Every try asked for; those that are in tries.csv already are not made again."""
    path = world.home / "tries.csv"
    about = (world.home / "calm.json").read_text()
    if not (world.home / "tries.of").is_file() or (world.home / "tries.of").read_text() != about:
        path.unlink(missing_ok=True)  # of another commit
        (world.home / "tries.of").write_text(about)
    found = (
        read_table(path, ("seed", "number")) if path.is_file() else pd.DataFrame(columns=COLUMNS)
    )
    done = set(zip(found["kind"], found["seed"], found["number"], strict=True))
    lines = found.to_dict("records")
    for number in range(tries):
        for kind in kinds:
            if (kind, seed, number) in done:
                continue
            script = number % len(SCRIPTS)
            outcome = attempt(world, kind, script, Random(f"{seed} {kind} {number}"))
            row = (kind, seed, number, SCRIPTS[script], outcome.result, outcome.says)
            lines.append(dict(zip(COLUMNS, row, strict=True)))
            write_table(path, pd.DataFrame(lines, columns=COLUMNS))
            shown = outcome.says if outcome.result == LOST else outcome.says[:90]
            print(
                f"{number:4} {kind:36} {SCRIPTS[script]:26} {outcome.result:10}{shown}", flush=True
            )
    clean(world.home)
    return pd.DataFrame(lines, columns=COLUMNS)


def attempt(world: World, kind: str, script: int, rng: Random) -> Outcome:
    try:
        return KINDS[kind](world, script, rng)
    except AssertionError as error:  # a child that hangs
        return Outcome(LOST, str(error))


def written(tries: pd.DataFrame, out: Path) -> str:
    """The section of the table; the scores are beside it."""
    lines = []
    for (kind, script), rows in tries.groupby(["kind", "script"]):
        counts = {name: int((rows["result"] == name).sum()) for name in RESULTS_OF}
        lines.append(
            {"kind": kind, "script": script, "tries": len(rows), **counts, "git": git_state()}
        )
    SCORES.keep(lines, out)
    kept, per_kind = SCORES.read(out), []
    for kind in (kind for kind in KINDS if (kept["kind"] == kind).any()):
        rows = kept[kept["kind"] == kind]
        counts = {name: int(rows[name].sum()) for name in ("tries", *RESULTS_OF)}
        per_kind.append({"fault": kind, **counts, "commit": distinct(rows["git"])})
    if not per_kind:
        return "Nothing was tried yet."
    body = (
        "Each try starts one of the six scripts on a tiny competition under one fault, and then "
        "the same command again without it. *Identical*: every file is there byte for byte "
        "(manifests, metrics.csv and report up to times), and no other. *Refused*: stopped with "
        "an error in words, for a damaged file with its name; what was left became identical once "
        "the fault was gone."
        f"\n\n{markdown(per_kind)}\n\n`python -m tests.faults --tries N` · {machine()}"
    )
    return write_section("faults", "Faults", body, out)


if __name__ == "__main__":
    sys.exit(main())
