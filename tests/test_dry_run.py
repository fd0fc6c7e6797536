"""`--dry-run` of every script: the refusals of the real run, a plan, and not a byte changed."""

import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest

from src.artifacts.files import sha256
from src.artifacts.lock import lock_file
from src.artifacts.shadow import shadow
from src.artifacts.work import RUNS
from src.ensemble.ensemble import ensemble
from src.errors import UserError
from src.plan import would
from src.posthoc.calibrate import posthoc
from src.prepare.prepare import prepare
from src.progress import Probe, Reached, each
from src.rebalance.stage2 import stage2
from src.training.stage1 import stage1
from tests.conftest import digits_config
from tests.fabricate import config, digits_runs


def args(experiment: str = "exp", **more) -> Namespace:
    return Namespace(**({"config": f"{experiment}.yaml", "folds": [], "overwrite": False} | more))


def tree() -> dict[str, tuple]:
    """All that lies in runs/ and data/, locks included, with times and content."""
    found = {}
    for path in sorted(p for root in ("runs", "data") for p in Path(root).rglob("*")):
        about = path.lstat()
        content = sha256(path) if path.is_file() else ""
        found[str(path)] = (about.st_mtime_ns, about.st_ino, content)
    return found


@pytest.fixture
def untouched():
    """What is there before and after a test's `dry`."""

    def dry(*parts) -> None:
        before, here = tree(), Path.cwd()
        try:
            would(*parts)
        finally:
            assert tree() == before and Path.cwd() == here

    return dry


def test_nothing_written_in_a_shadow_is_real(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/a/exp/stage1").mkdir(parents=True)
    (tmp_path / "runs/b").mkdir()
    for name in ("runs/a/exp/x.npz", "runs/a/exp/study.db", "runs/a/.exp.lock", "notes.txt"):
        Path(name).write_text(name)
    before = tree()
    with shadow("a"):
        assert Path("runs/a/exp/x.npz").read_text() == "runs/a/exp/x.npz"
        assert Path("notes.txt").is_file() and Path("runs/b").is_dir()
        with open("runs/a/exp/study.db", "a") as file:
            file.write("more")
        Path("runs/a/exp/x.npz").unlink()
        Path("runs/a/exp/stage1/new").mkdir()
        Path("runs/a/.exp.lock").write_text("me")
        inside = Path.cwd()
    assert tree() == before and not inside.exists()


def test_a_lock_that_is_held_is_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    held, free = lock_file(RUNS / "a" / "x"), lock_file(RUNS / "a" / "y")
    held.parent.mkdir(parents=True)
    free.write_text("")
    code = f"import fcntl,time; f=open({str(held)!r},'a'); fcntl.lockf(f,fcntl.LOCK_EX); "
    code += "print('held',flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with shadow("a"):
            assert held.is_symlink() and not free.exists()
    finally:
        process.kill()
        process.wait()


def test_a_probe_stops_in_the_main_work_and_lets_the_rest_pass():
    done = []
    with Probe("steps", updates=3), pytest.raises(Reached) as reached:
        done += each(range(10), "decoding", "img")
        for step in each(range(100), "fold0 epoch 1/2", "steps"):
            done.append(step)
    assert done == [*range(10), 0, 1, 2]
    assert reached.value.total == 100 and reached.value.unit == "steps" and reached.value.units == 2
    assert list(each(range(100), "as ever", "steps")) == list(range(100))


def test_02_and_03_tell_what_is_left(digits, untouched, capsys):
    settings = digits_config("train.epochs=2", "train.batch_size=16")
    untouched("02", settings, args(), partial(stage1, settings, "exp", [], False))
    said = capsys.readouterr().out
    assert "stage1/fold2: is made" in said and "nothing was written" in said
    assert (
        "6 epochs in all of 14 steps" in said and "s per step (measured: fold0 epoch 1/2)" in said
    )
    assert "iB each" in said and "memory:" in said
    with pytest.raises(UserError, match="expected numbers of"):
        untouched("02", settings, args(folds=["9"]), partial(stage1, settings, "exp", ["9"], False))
    with pytest.raises(UserError, match="has no finished network"):
        untouched("03", settings, args(), partial(stage2, settings, "exp", False))
    stage1(settings, "exp", ["0"], False)
    capsys.readouterr()
    untouched("02", settings, args(), partial(stage1, settings, "exp", [], False))
    said = capsys.readouterr().out
    assert "stage1/fold0: finished already" in said and "4 epochs in all" in said
    other = digits_config("train.epochs=2", "train.batch_size=16", "train.lr=0.01")
    with pytest.raises(UserError, match="made with another config"):
        untouched("02", other, args(), partial(stage1, other, "exp", ["0"], False))
    untouched("03", settings, args(), partial(stage2, settings, "exp", False))
    said = capsys.readouterr().out
    assert "stage2/crt/fold0: is made" in said and "images in all of 1 networks" in said
    untouched("01", settings, args(), partial(prepare, settings))
    assert "none, all is there" in capsys.readouterr().out


def test_04_and_06_too(tmp_path, monkeypatch, untouched, capsys):
    monkeypatch.chdir(tmp_path)
    digits_runs(exp=0.0)
    settings = config(ensemble={"members": ["stage1"]})
    untouched("04", settings, args(), partial(posthoc, settings, "exp"))
    said = capsys.readouterr().out
    assert "posthoc: is made" in said and "per head (measured: calibration)" in said
    untouched("06", settings, args(), partial(ensemble, [settings], ["exp"]))
    assert "KiB in runs/" in capsys.readouterr().out
    assert not (RUNS / "digits/submissions").exists()


def test_a_refusal_names_the_real_working_directory(tmp_path, monkeypatch, untouched):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is missing .working directory (.*). Run") as said:
        untouched("02", config(), args(), lambda: None)
    assert f"(working directory {tmp_path})" in str(said.value)


def test_one_process_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it as one process"):
        would("02", config(), args(), lambda: None)
