"""A small campaign of faults, as `python -m tests.faults` runs it in large."""

import os
import subprocess
import sys

import pytest

from src.artifacts.files import read_table
from tests import test_fuzz
from tests.benchmark_kit import row
from tests.conftest import ROOT
from tests.faults import fuzz
from tests.faults.world import contents


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


def test_a_page_is_the_same_but_for_its_times(tmp_path):
    page = tmp_path / "report.html"
    digests = []
    for text in ("<td>0.1</td>", "<td>0.2</td>", "<time datetime='PT9S'>0.1</time> in 41 s",
                 "<time datetime='PT13S'>0.2</time> in 2 min"):  # fmt: skip
        page.write_text(text)
        digests.append(contents(tmp_path)["report.html"])
    assert digests[0] != digests[1] and digests[2] == digests[3]


def test_every_made_up_example_is_in_the_table_of_the_fuzzing():
    made_up = {name for name, test in vars(test_fuzz).items() if hasattr(test, "hypothesis")}
    assert made_up == set(fuzz.TESTS.values())


@pytest.mark.slow
def test_the_fuzzing_counts_what_became_of_the_examples(tmp_path):
    out = tmp_path / "RESULTS.md"
    command = ["-m", "tests.faults.fuzz", "--examples", "5", "--tests", "artifact", "--out", out]
    found = fuzzing(*map(str, command))
    assert found.returncode == 0, found.stdout + found.stderr
    _, examples, taken, refused, failed, _ = row(out.read_text(), "bytes of an artifact")
    assert failed == "0" and int(examples) == int(taken) + int(refused) >= 5


@pytest.mark.slow
def test_what_is_no_sentence_is_a_failure_of_the_fuzzing():
    code = """
from tests import test_fuzz
from tests.faults import fuzz
from tests.faults.world import contents
test_fuzz.READERS = dict.fromkeys(test_fuzz.READERS, lambda path: 1 / 0)
print(fuzz.one(fuzz.TESTS["bytes of an artifact"]))
"""
    found = fuzzing("-c", code)
    assert "'failed': 1" in found.stdout.splitlines()[-1], found.stdout + found.stderr


def fuzzing(*command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"FUZZ": "5"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
