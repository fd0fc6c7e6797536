"""Sections of benchmarks/RESULTS.md, each written by the script that measured it, and the scores
behind the tables of many rows.

A section stands between two HTML comments; running its script again replaces it and nothing else.
Runs are not in git, their scores are: scores/<table>.csv beside RESULTS.md, a line per score. So a
table can be measured in parts, on several days and machines; measuring a row again replaces it.
"""

import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from src.artifacts.files import read_table, write_table, write_text
from src.artifacts.work import git_state

RESULTS = Path(__file__).with_name("RESULTS.md")


def provenance() -> str:
    """Command, commit, machine kind and date of a measurement, as one line. Where the section was
    written (--out) is no part of what was measured."""
    command = re.sub(r" --out[ =]\S+", "", " ".join(["python", *sys.orig_argv[1:]]))
    date = datetime.now(UTC).date().isoformat()
    return f"`{command}` · commit {git_state()} · {machine()} · {date}"


def machine() -> str:
    import torch  # not before it is needed: what measures memory does without

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = re.findall(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    return f"CPU: {os.cpu_count()} cores, {models[0] if models else platform.processor()}"


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def markdown(rows: list[dict], digits: int = 3) -> str:
    """Rows with the same keys as a Markdown table."""
    names = list(rows[0])
    lines = [table_line(names), table_line(["---"] * len(names))]
    for row in rows:
        cells = [f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append(table_line(cells))
    return "\n".join(lines)


def table_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def distinct(cells: Iterable[str]) -> str:
    """Each commit once, of cells that may name several."""
    return ", ".join(sorted({name for cell in cells for name in cell.split(", ")}))


def write_section(name: str, title: str, body: str, path: Path = RESULTS) -> str:
    """Replace the section `name` of RESULTS.md, or add it at the end; returns its text."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{begin}\n## {title}\n\n{body.strip()}\n{end}"
    text = _read(path) or "# Results\n"
    if begin in text and end in text:
        before, rest = text.split(begin, 1)
        text = before + section + rest.split(end, 1)[1]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    write_text(path, text)
    return section


@dataclass(frozen=True)
class Scores:
    """The lines of scores/<name>.csv. keys: text, by which lines are told apart · values: numbers ·
    facts: text on how they came about"""

    name: str
    keys: tuple[str, ...]
    values: tuple[str, ...]
    facts: tuple[str, ...] = ("device", "git")

    def path(self, results: Path = RESULTS) -> Path:
        return results.with_name("scores") / f"{self.name}.csv"

    def read(self, results: Path = RESULTS) -> pd.DataFrame:
        """All lines, none before anything was measured. Errors: UserError for a damaged file."""
        if not self.path(results).is_file():
            return pd.DataFrame(columns=[*self.keys, *self.values, *self.facts])
        return read_table(self.path(results), self.values)

    def keep(self, lines: list[dict], results: Path = RESULTS) -> pd.DataFrame:
        """Write `lines`, in place of those with the same keys. Returns all there are."""
        kept = self.read(results)
        if not lines:
            return kept
        new = pd.DataFrame(lines, columns=kept.columns).round(4)
        both = pd.concat([kept, new], ignore_index=True) if len(kept) else new
        both = both.drop_duplicates([*self.keys], keep="last")
        write_table(self.path(results), both.sort_values([*self.keys]))
        return self.read(results)
