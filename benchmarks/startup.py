"""Start-up: how long each script takes to say what it takes, and to begin.

    python benchmarks/startup.py
    python benchmarks/startup.py --rounds 9 --before ../old     # another checkout, in turns

help    from the command to the end of `--help`
begins  from the command to its first line where all work is done, `finished already, skipped`: all
        that comes before work is behind it then, config, tables and what guards the inputs
In core seconds, which are those of the clock where nothing else runs: imports use one core. The
commands take turns with `python -c "import torch"`, of which the ratios are; medians over the
rounds. timm, which imports torchvision and with that torch's compiler, is imported where a network
is to run: that is its row less torch's, and comes after `begins` in 02, 03 and 05. Runs the six
scripts once before, which trains the config where that is not done yet.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/startup.py`

from benchmarks.results import RESULTS, markdown, provenance, write_section
from src.errors import UserError

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in ROOT.glob("0*.py"))
TORCH, TIMM = "import torch", "import timm"


def seconds(command: list[str], *, first_line: bool = False, root: Path = ROOT) -> float:
    """Core seconds of a command, or up to the end of the first line that it prints.

    root: the checkout in which it runs. Errors: UserError with what it said, where it fails.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=root, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said = process.stdout.readline()
    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.NoSuchProcess:  # it had nothing more to do
        times = None
    said += process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed: {said.strip()[-400:]}")
    if first_line and times is not None:
        return times.user + times.system
    return usage.ru_utime + usage.ru_stime


def measured(config: str, rounds: int, before: Path | None) -> dict[tuple[str, str], list[float]]:
    """Core seconds of each round, by script (or import) and what was asked of it."""
    python, found = sys.executable, {}
    for _ in range(rounds):
        for name in (TORCH, TIMM):
            found.setdefault((name, "begins"), []).append(seconds([python, "-c", name]))
        for name in SCRIPTS:
            command = [python, name, "--config", config]
            begins = {"begins": ROOT} | ({"before": before} if before else {})
            for what, root in begins.items():
                took = seconds(command, first_line=True, root=root)
                found.setdefault((name, what), []).append(took)
            found.setdefault((name, "help"), []).append(seconds([python, name, "--help"]))
    return found


def rows_of(found: dict[tuple[str, str], list[float]]) -> list[dict]:
    """A row per script: medians, and the median of the rounds' ratios."""
    torch, rows = found[TORCH, "begins"], []
    for name in [n for n, what in found if what == "begins"]:
        times = found.get((name, "help"))
        begins = found[name, "begins"]
        ratio = statistics.median(a / b for a, b in zip(begins, torch, strict=True))
        row = {
            "command": name,
            "--help, s": statistics.median(times) if times else "",
            "begins after, s": statistics.median(begins),
            "of `import torch`": ratio,
        }
        if any(what == "before" for _, what in found):
            there = found.get((name, "before"))
            row["before, s"] = statistics.median(there) if there else ""
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/digits.yaml")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, metavar="DIR", help="another checkout to compare")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args(argv)
    for root in filter(None, (args.before, ROOT)):
        for name in SCRIPTS:
            took = seconds([sys.executable, name, "--config", args.config], root=root)
            print(f"{root.resolve().name}/{name}: {took:.1f} core seconds", flush=True)
    rows = rows_of(measured(args.config, args.rounds, args.before))
    timm = rows[1]["begins after, s"] - rows[0]["begins after, s"]
    body = f"{provenance()}\n\n{markdown(rows, 2)}\n\nMedians of {args.rounds} rounds, in core "
    body += (
        "seconds. Where a network is to run, 02, 03 and 05 import timm, and with it torchvision "
    )
    body += f"and torch's compiler, for {timm:.2f} seconds more."
    if args.before:
        git = ["git", "rev-parse", "--short=12", "HEAD"]
        commit = subprocess.run(git, cwd=args.before, capture_output=True, text=True, check=True)
        body += f" Before: commit {commit.stdout.strip()}, in turns."
    print(write_section("startup", "Start-up", body, args.out))


if __name__ == "__main__":
    main()
