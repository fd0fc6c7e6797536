"""Sections of benchmarks/RESULTS.md, each written by the script that measured it.

A section stands between two HTML comments; running its script again replaces it and nothing else.
"""

import os
import platform
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from src.artifacts import git_state, write_text

RESULTS = Path(__file__).with_name("RESULTS.md")


def provenance() -> str:
    """Command, commit, machine kind and date of a measurement, as one line."""
    command = " ".join(["python", *sys.orig_argv[1:]])
    date = datetime.now(UTC).date().isoformat()
    return f"`{command}` · commit {git_state()} · {machine()} · {date}"


def machine() -> str:
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
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
