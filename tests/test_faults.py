"""A small campaign of faults, as `python -m tests.faults` runs it in large."""

import os
import subprocess
import sys

import pytest

from src.artifacts.files import read_table
from tests.conftest import ROOT


@pytest.mark.slow
def test_a_small_campaign_loses_nothing_and_goes_on_where_it_was_stopped(tmp_path):
    command = [sys.executable, "-m", "tests.faults", "--home", str(tmp_path / "home")]
    command += [
        "--out",
        str(tmp_path / "RESULTS.md"),
        "--kinds",
        "in a write",
        "earlier",
        "--tries",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for made in (2 * 3, 0):
        found = subprocess.run(
            [*command, "3"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stdout + found.stderr
        lines = [line for line in found.stdout.splitlines() if line[:4].strip().isdigit()]
        assert len(lines) == made
    scores = read_table(tmp_path / "scores" / "faults.csv", ("tries", "lost"))
    assert scores["tries"].sum() == 2 * 3 and scores["lost"].sum() == 0
    assert "| kill -9 in a write | 3 |" in (tmp_path / "RESULTS.md").read_text()
