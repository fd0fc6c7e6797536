"""benchmarks/scaling.py and growth.py: planted growth is found, and costs are those of commands."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import psutil
import pytest

from benchmarks import scaling
from benchmarks.growth import exponent, fit
from benchmarks.scaling import COSTS, SCORES, SCRIPTS, Point

SIZES = np.array([1000, 2000, 4000, 8000])


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_is_told_from_start_up(power):
    values = 7 + 50 * (SIZES / 1000) ** power
    assert exponent(SIZES, values) == pytest.approx(power, abs=0.08)
    noisy = values * np.exp(np.random.default_rng(0).normal(0, 0.01, 4))
    assert exponent(SIZES, noisy) == pytest.approx(power, abs=0.3)


def test_what_hardly_grows_or_was_measured_twice_has_no_exponent():
    assert math.isnan(exponent(SIZES, np.array([5.0, 5.1, 5.2, 5.4])))
    assert math.isnan(exponent(SIZES[:2], np.array([1.0, 2.0])))


def test_terms_of_both_sizes_are_told_apart_and_hold_far_away():
    points = scaling.points(scaling.arguments(["--images", "2000", "--classes", "200"]))
    n, k = np.array(points).T

    def cost(n, k):
        return 4 + 2e-3 * n + 3e-6 * n * k

    found = fit(n, k, cost(n, k))
    assert found.per_class == pytest.approx(0, abs=1e-9)
    assert found.at(437_513, 8_142) == pytest.approx(cost(437_513, 8_142), rel=1e-3)


def test_both_sizes_grow_together_and_each_alone():
    points = scaling.points(scaling.arguments("--images 10 --classes 2 --times 1 2 4".split()))
    assert points[:3] == [Point(10, 2), Point(20, 4), Point(40, 8)] and len(points) == 6
    assert {p for p in points if p.classes == 2} == {Point(10 * t, 2) for t in (1, 2, 4)}
    assert {p for p in points if p.images == 40} == {Point(40, 2 * t) for t in (1, 2, 4)}


@pytest.mark.parametrize("point", [Point(60, 6), Point(61, 7), Point(16_000, 1_600)])
def test_a_fabricated_tail_has_all_images_and_two_of_each_class(point):
    counts = scaling.tail(point)
    assert counts.sum() == point.images and len(counts) == point.classes
    assert counts.min() >= 2 and counts[0] == counts.max()


def test_a_cost_is_that_of_the_command_and_its_children(tmp_path):
    child = "import time; x = bytearray(120 << 20)\nwhile time.process_time() < 0.6: pass"
    code = f"""
import pathlib, subprocess, sys
subprocess.run([sys.executable, "-c", {child!r}])
pathlib.Path("runs").mkdir()
pathlib.Path("runs/x").write_bytes(bytes(3_000_000))
"""
    found = scaling.measure([sys.executable, "-c", code], tmp_path)
    assert found["seconds"] > 0.6 and found["disk_mb"] == pytest.approx(3)
    assert 120 < found["memory_mib"] < 400
    with pytest.raises(subprocess.CalledProcessError):
        scaling.measure([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


def test_points_that_are_done_are_skipped_and_those_begun_go_on(tmp_path, monkeypatch):
    out, started = tmp_path / "RESULTS.md", []
    args = scaling.arguments(["--out", str(out), "--work", str(tmp_path / "work")])
    costs = dict(zip(COSTS, (1.0, 2.0, 3.0), strict=True))
    monkeypatch.setattr(scaling, "fabricate", lambda home, *_: home.mkdir(parents=True))
    monkeypatch.setattr(scaling, "git_state", lambda: "abc")

    def measure(command, home):
        started.append(command[3][-30:])
        if len(started) == 3:
            raise KeyboardInterrupt
        (home / "config.yaml").touch()
        return costs

    monkeypatch.setattr(scaling, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        scaling.run_point(Point(10, 2), args)
    assert len(SCORES.read(out)) == 2
    scaling.run_point(Point(10, 2), args)
    assert len(started) == 3 + len(SCRIPTS) - 2 and started[2] == started[3]
    scaling.run_point(Point(10, 2), args)
    assert len(started) == 3 + len(SCRIPTS) - 2 and not list(args.work.iterdir())


def test_the_table_says_what_grows_and_what_it_comes_to(tmp_path, monkeypatch):
    args = scaling.arguments(["--rates", '{"01": 100, "training": 10, "inference": 50}'])
    lines = [
        {"stage": stage, "images": p.images, "classes": p.classes, "folds": "5", "git": "abc"}
        | {"seconds": 2 + 1e-7 * p.images**2, "memory_mib": 300 + p.images * p.classes / 1e4}
        | {"disk_mb": p.images / 100}
        for p in scaling.points(args)
        for stage in SCRIPTS
    ]
    table = pd.DataFrame(lines)
    row = scaling.exponents(table)[1]
    assert row["seconds, N"] == pytest.approx(2, abs=0.1) and row["seconds, K"] == "–"
    assert row["memory, K"] == pytest.approx(1, abs=0.1)
    assert row["seconds, both"] == pytest.approx(2, abs=0.1)
    assert row["memory, both"] == pytest.approx(2, abs=0.1)  # of the product
    text = scaling.body(table, args)
    assert "iNaturalist 2021" in text and "training 10" in text
    rows = scaling.extrapolated(table, 1000, 100, args.rates, args)
    hours = (30 * 4 * 1000 / 10 + 1000 / 50) / 3600
    assert rows[1]["core hours, network"] == pytest.approx(hours)
    assert rows[3]["core hours, network"] == 0 and rows[0]["disk, GB"] == pytest.approx(0.01)
    together = table[table["images"] == 10 * table["classes"]]
    assert len(together) == len(SCRIPTS) * 4
    said = scaling.body(together, args)
    assert (
        "nothing is extrapolated" in said and "seconds, both" in said and "seconds, N" not in said
    )


SHARED = """
import os, time
ones = b"1" * 60 * 2**20
if os.fork() == 0:
    time.sleep(20)
print("ready", flush=True)
time.sleep(20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory by /proc")
def test_what_processes_have_in_common_counts_once(tmp_path):
    """60 MiB that a child has from its parent, and what both have of the interpreter's files."""
    process = psutil.Popen([sys.executable, "-c", SHARED], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        (child,) = process.children()
        found = scaling.resident(process, tmp_path) / 2**20
        assert 60 < found < 90 and child.memory_info().rss / 2**20 > 60
    finally:
        for one in (*process.children(), process):
            one.kill()
        process.wait()
    assert scaling.resident(process, tmp_path) == 0


MAPS = """
import mmap, sys, time
import numpy as np
ones = np.memmap(sys.argv[1], np.uint8, "c")
ones.sum()
ones[: 20 * 2**20] += 1
print("ready", flush=True)
time.sleep(20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory by /proc")
def test_mapped_files_of_the_run_count_where_they_were_changed_alone(tmp_path):
    """60 MiB are read, of which 20 are changed in memory."""
    path = tmp_path / "of the run" / "x"
    path.parent.mkdir()
    path.write_bytes(bytes(60 * 2**20))
    process = psutil.Popen([sys.executable, "-c", MAPS, str(path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        mine, others = (
            scaling.resident(process, tmp_path / n) / 2**20 for n in ("of the run", "x")
        )
        assert others - mine == pytest.approx(40, abs=0.5)
    finally:
        process.kill()
        process.wait()
