"""The campaign: of each room so many mutants, drawn by a seed.

    python -m tests.mutants --sample 100                  all rooms; goes on where it was stopped
    python -m tests.mutants --sample 60 --rooms losses --out /tmp/a.md

Each mutant is a line of <home>/mutants.csv. A killed one is not tried again while its line reads
the same; one that survived is, once the room's sources or tests are others. equivalent.csv names
those of the survivors that no test could kill, and why. The table goes to benchmarks/RESULTS.md,
its lines per operator to benchmarks/scores/mutants.csv.
"""

import argparse
import hashlib
import importlib.util
import itertools
import json
import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked child must find no threads

import pandas as pd

if not all(map(importlib.util.find_spec, ("libcst", "mutmut"))):
    sys.exit("needs `pip install -r tests/mutants/requirements.txt -c tests/requirements.lock`")

from benchmarks.results import RESULTS, Scores, distinct, markdown, provenance, write_section
from src.artifacts.files import read_table, write_json, write_table
from src.artifacts.work import git_state
from tests.conftest import ROOT
from tests.mutants.child import KILLED, SURVIVED, TIMEOUT, Chosen, attempt, reached
from tests.mutants.operators import Mutant, mutants

EQUIVALENT = "equivalent"
RESULTS_OF = (KILLED, TIMEOUT, SURVIVED, EQUIVALENT)
SCORES = Scores("mutants", ("draw", "room", "operator"), ("mutants", *RESULTS_OF), ("git",))
KEY = ["path", "before", "after", "nth"]
COLUMNS = ["room", "line", "operator", *KEY, "result", "by", "seconds", "of", "git"]
MOST = 8.0  # seconds of tests that a mutant has to survive


@dataclass(frozen=True)
class Room:
    """sources: patterns below src · tests: those that are about it, the nearest first"""

    sources: tuple[str, ...]
    tests: tuple[str, ...]

    def paths(self) -> list[str]:
        found = (path for pattern in self.sources for path in sorted((ROOT / "src").glob(pattern)))
        return [path.relative_to(ROOT).as_posix() for path in found if path.stat().st_size]

    def files(self) -> list[str]:
        return [f"tests/test_{name}.py" for name in self.tests]

    def digest(self, *files: str) -> str:
        """Of the sources and `files`."""
        texts = [(ROOT / path).read_bytes() for path in (*self.paths(), *files)]
        return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


ROOMS = {
    "losses": Room(("losses/*.py",), ("losses", "margins", "tables", "distill")),
    "samplers": Room(("data/samplers.py",), ("samplers", "losses", "tables")),
    "folds": Room(
        ("prepare/folds.py", "prepare/longtail.py", "prepare/few.py"),
        ("prepare_folds", "prepare_classes", "smoke", "prepare_lists"),
    ),
    "fusion": Room(
        ("fusion/*.py",),
        (
            "fusion", "posthoc", "asm", "classwise", "decision", "calibration_steps", "surgery",
            "metadata_prior", "observations", "target_prior", "label_shift", "combiners",
            "fuse_heads", "joint", "one_fold", "tables",
        ),
    ),
    "metrics": Room(
        ("metrics/*.py",),
        (
            "metrics", "competition_metrics", "calibration_errors", "target_prior", "decision",
            "posthoc", "suspects", "tables",
        ),
    ),
    "submission": Room(("submission/*.py",), ("submission", "fuzz")),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=100, help="of each room (default: 100)")
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS), choices=ROOMS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "mutants", metavar="DIR")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table's file, Markdown")
    args = parser.parse_args()
    args.home.mkdir(parents=True, exist_ok=True)
    sizes, lines = {}, []
    for name in args.rooms:
        found = every_mutant(ROOMS[name])
        sizes[name] = len(found)
        found = sorted(found, key=lambda mutant: mutant.place(args.seed))[: args.sample]
        lines.append(campaign(name, found, args.home.resolve()))
    print(written(pd.concat(lines), sizes, args.seed, args.sample, args.out))
    return 0


def every_mutant(room: Room) -> list[Mutant]:
    return [m for path in room.paths() for m in mutants(path, (ROOT / path).read_text("utf-8"))]


def campaign(name: str, asked: list[Mutant], home: Path) -> pd.DataFrame:
    """The line of every mutant asked for."""
    room, path = ROOMS[name], home / "mutants.csv"
    numbers = ("line", "nth", "seconds")
    found = read_table(path, numbers) if path.is_file() else pd.DataFrame(columns=COLUMNS)
    lines = {tuple(line[key] for key in KEY): line for line in found.to_dict("records")}
    reach = {file: reach_of(room, file, home) for file in room.files()}
    digest, git = room.digest(*room.files()), git_state()
    for mutant in asked:
        line = lines.get(mutant.key)
        if line and (line["result"] != SURVIVED or line["of"] == digest):
            continue
        outcome = attempt(mutant.path, mutant.source, chosen(mutant, reach), home)
        row = (name, mutant.lines[0], mutant.operator, *mutant.key, outcome.result, outcome.by)
        row = (*row, round(outcome.seconds, 2), digest, git)
        lines[mutant.key] = dict(zip(COLUMNS, row, strict=True))
        write_table(path, pd.DataFrame(list(lines.values()), columns=COLUMNS))
        print(
            f"{outcome.result:9} {outcome.seconds:5.1f} s  {mutant.path}:{mutant.lines[0]}  "
            f"{mutant.before}  →  {mutant.after}  {outcome.by}",
            flush=True,
        )
    return pd.DataFrame([lines[mutant.key] for mutant in asked], columns=COLUMNS)


def reach_of(room: Room, file: str, home: Path) -> dict:
    """As `reached` finds it, kept as long as the file and the room's sources are the same."""
    kept = home / "reach" / f"{room.digest(file)}.json"
    if not kept.is_file():
        print(f"which lines {file} reaches", flush=True)
        kept.parent.mkdir(exist_ok=True)
        write_json(kept, reached(file, room.paths(), home))
    return json.loads(kept.read_text("utf-8"))


def chosen(mutant: Mutant, reach: dict[str, dict]) -> dict[str, Chosen]:
    """The tests that reach the mutant's statement, the quickest of them, MOST seconds in all; those
    that reach its module where it runs on import, or where no test reaches it while it runs."""
    first, last = mutant.lines
    costs = {name: cost for of in reach.values() for name, cost in of["costs"].items()}
    spans = [range(first, last + 1)] if not mutant.imported else []
    for span in (*spans, None):
        names = {
            name
            for of in reach.values()
            for line, tests in of["lines"][mutant.path].items()
            if span is None or int(line) in span
            for name in tests
        }
        if names:
            quickest = sorted(names, key=lambda name: (costs[name], name))
            spent = itertools.accumulate(costs[name] for name in quickest)
            names = {name for name, so_far in zip(quickest, spent, strict=True) if so_far <= MOST}
            break
    files = {
        file: {n: c for n, c in of["costs"].items() if n in names} for file, of in reach.items()
    }
    return {f: Chosen(found, frozenset(reach[f]["costs"])) for f, found in files.items() if found}


def written(lines: pd.DataFrame, sizes: dict[str, int], seed: int, sample: int, out: Path) -> str:
    """The section of the table; the scores are beside it."""
    reasons = read_table(ROOT / "tests" / "mutants" / "equivalent.csv").to_dict("records")
    why = {tuple(r[key] for key in KEY[:3]): r["why"] for r in reasons}
    lines = lines.assign(
        why=[why.get(mutant, "") for mutant in zip(*(lines[k] for k in KEY[:3]), strict=True)]
    )
    lines.loc[(lines["result"] == SURVIVED) & (lines["why"] != ""), "result"] = EQUIVALENT
    SCORES.keep(
        [
            {
                "draw": str(seed),
                "room": room,
                "operator": operator,
                **counted(rows),
                "git": distinct(rows["git"]),
            }
            for (room, operator), rows in lines.groupby(["room", "operator"])
        ],
        out,
    )
    table = []
    for room, there in sizes.items():
        counts = counted(rows := lines[lines["room"] == room])
        ended = counts[KILLED] + counts[TIMEOUT]
        share = f"{100 * ended / (len(rows) - counts[EQUIVALENT]):.1f} %"
        row = {"room": room, "there are": there, "tried": counts.pop("mutants")}
        table.append({**row, **counts, "share": share})
    body = (
        f"One small change of src at a time (operators of mutmut {version('mutmut')}), and the "
        f"tests of its room that reach it, in {MOST:g} seconds. Of each room up to {sample} "
        f"mutants, drawn by the seed {seed}. Survivors of seed 0 led to tests; what other seeds "
        "draw shows how many live that nobody had looked for. A *timeout* is a kill. *Equivalent*: "
        "read and found to change nothing that a caller could see; the share killed is of the "
        "others.\n\n"
        f"{markdown(table)}\n\n{provenance()}"
    )
    for result, title in ((EQUIVALENT, "Equivalent"), (SURVIVED, "Alive")):
        if told := [f"- {_told(r)}" for r in lines[lines["result"] == result].to_dict("records")]:
            body += f"\n\n### {title}\n\n" + "\n".join(told)
    return write_section(f"mutants {seed}", f"Mutants, drawn by seed {seed}", body, out)


def _told(line: dict) -> str:
    change = f"{line['path']}: `{line['before']}` → `{line['after']}`"
    return f"{change}: {line['why']}" if line["result"] == EQUIVALENT else change


def counted(rows: pd.DataFrame) -> dict[str, int]:
    return {"mutants": len(rows)} | {r: int((rows["result"] == r).sum()) for r in RESULTS_OF}


if __name__ == "__main__":
    sys.exit(main())
