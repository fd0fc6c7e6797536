"""The fuzzing: many made-up examples for each test of tests/test_fuzz.py, and what they became.

    python -m tests.faults.fuzz --examples 2000
    python -m tests.faults.fuzz --examples 200 --tests json --out /tmp/a.md

Other examples every time. The table goes to benchmarks/RESULTS.md: how many were taken, how many
were refused in words, and how many failed: with a traceback, or because something outside the data
was opened, or something was executed or unpickled. hypothesis stops a test at its first failure,
prints the smallest example of it, and the command ends with status 1. Each test runs in a process
of its own, whose memory is its own.
"""

import argparse
import os
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.results import RESULTS, markdown, provenance, write_section
from tests.conftest import ROOT

TESTS = {  # what is made up → the test
    "a config": "test_any_yaml_is_a_config_or_a_sentence",
    "--set": "test_any_override_is_a_config_or_a_sentence",
    "train.csv and sample": "test_any_tables_are_a_competition_or_a_sentence",
    "a sample submission": "test_any_sample_submission_is_recognised_or_a_sentence",
    "names of folders and files": "test_any_names_of_folders_and_files_are_taken_or_a_sentence",
    "bytes of an image": "test_random_bytes_under_the_header_of_an_image_are_read_or_a_sentence",
    "bytes of an artifact": "test_any_bytes_are_an_artifact_or_a_sentence",
    "json of recipes and manifests": "test_any_json_is_a_recipe_or_a_manifest_or_a_sentence",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--examples", type=int, default=2000, help="for each test (default: 2000)")
    parser.add_argument(
        "--tests", nargs="+", default=[""], metavar="WORD", help="those with a WORD"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table's file, Markdown")
    args = parser.parse_args()
    chosen = {k: t for k, t in TESTS.items() if any(word in k for word in args.tests)}
    os.environ["FUZZ"] = str(args.examples)  # of the children, before they import the tests
    with ProcessPoolExecutor(args.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        found = list(pool.map(one, chosen.values()))
    rows = [{"made up": kind} | row for kind, row in zip(chosen, found, strict=True)]
    body = (
        "Examples that hypothesis makes up, random ones and those it finds by mutation. *Refused*: "
        "an error in words. *Failed*: a traceback, or anything outside the data opened, executed "
        "or unpickled. *MiB*: by which the memory of the process grew at its peak."
        f"\n\n{markdown(rows)}\n\n{provenance()}"
    )
    print(write_section("fuzzing", "Fuzzing", body, args.out))
    return int(any(row["failed"] for row in found))


def one(test: str) -> dict[str, int]:
    """Of one test, in this process: examples, and what became of them."""
    import pytest  # here, and the tests after FUZZ is set

    from tests import test_fuzz

    counts = {"taken": 0, "refused": 0}
    in_words = test_fuzz.in_words

    def counted(*args, **kwargs):
        found = in_words(*args, **kwargs)
        counts["refused" if found is None else "taken"] += 1
        return found

    test_fuzz.in_words = counted
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = pytest.main(["-q", "-p", "no:cacheprovider", f"{ROOT}/tests/test_fuzz.py::{test}"])
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = (after - before) // 1024
    return {"examples": sum(counts.values()), **counts, "failed": int(status != 0), "MiB": grown}


if __name__ == "__main__":
    sys.exit(main())
