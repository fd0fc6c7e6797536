"""One start at a time works on a directory; the second says who does, and a killed one blocks none.

Locks are between processes, so whoever holds one here is a child.
"""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from src.artifacts.files import write_text
from src.artifacts.lock import let_go, locked, own
from src.artifacts.work import MANIFEST, Work
from src.ensemble.ensemble import ensemble
from src.errors import UserError
from src.inference.predict import predict
from src.posthoc.calibrate import posthoc
from src.prepare.prepare import prepare
from src.rebalance.stage2 import stage2
from src.training.stage1 import stage1
from tests.conftest import ROOT, digits_config
from tests.fabricate import (
    config,
    digits_runs,
)
from tests.training_kit import tiny_config, tiny_dataset, train_tiny

RUN = Path("runs/digits")
HOLD = """
import os, sys
from pathlib import Path
from src.artifacts.lock import own
from src.errors import UserError
try:
    own(Path(sys.argv[1]))
    if sys.argv[2:] == ["fork"] and os.fork() == 0:
        os.execvp("sleep", ["sleep", "60"])  # as a reader of images that outlives its parent
    print("held", flush=True)
    sys.stdin.read()
except UserError as error:
    print(error)
"""


@contextmanager
def child(directory: Path, *more: str):
    """A process that tries to hold a directory, and its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory), *more],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        yield process, process.stdout.readline()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return digits_runs(exp=0.0)


# ---- the stages --------------------------------------------------------------------------------


def refused(stage, directory: Path) -> None:
    """`stage` stops while a child holds `directory`, says who it is, and changes nothing there."""
    before = {p: p.stat().st_mtime_ns for p in directory.rglob("*") if p.is_file()}
    with child(directory) as (process, said):
        assert said == "held\n"
        with pytest.raises(UserError) as error:
            stage()
        holder = f"{directory}: process {process.pid} on {os.uname().nodename} (since 20"
        assert str(error.value).startswith(holder)
        assert f": -c {directory}) works on it. Wait until" in str(error.value)
        assert {p: p.stat().st_mtime_ns for p in directory.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_01_stops_while_another_start_works(digits, overwrite):
    refused(lambda: prepare(digits_config(), overwrite), RUN / "folds")


@pytest.mark.parametrize("overwrite", [False, True])
def test_02_and_03_stop_while_another_start_works(world, overwrite):
    refused(lambda: stage1(config(), "new", ["1"], overwrite), RUN / "new/stage1/fold1")
    refused(lambda: stage2(config(), "exp", overwrite), RUN / "exp/stage2/crt/fold0")
    other = config(stage2=[{"head": "crt", "name": "other"}])
    refused(lambda: stage2(other, "exp", overwrite), RUN / "exp/stage2/features")


def test_04_to_06_stop_while_another_start_works(world):
    refused(lambda: posthoc(config(), "exp", overwrite=True), RUN / "exp/posthoc")
    posthoc(config(), "exp")
    refused(lambda: predict(config(), "exp", True), RUN / "exp/predict")
    one = config(ensemble={"members": ["crt"]})
    refused(lambda: ensemble([one], ["exp"]), RUN / "submissions")
    ensemble([one], ["exp"])
    for directory in (RUN / "exp/posthoc", RUN / "submissions"):
        with child(directory) as (_, said):
            assert said == "held\n"  # what has ended holds nothing, though its process lives


def test_two_starts_of_01_at_once(tmp_path):
    """One of them makes it; the other says who is at it, or that it is finished."""
    command = [sys.executable, str(ROOT / "01_prepare_folds.py")]
    command += ["--config", str(ROOT / "configs" / "digits.yaml"), "--set", "data.workers=0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=tmp_path, **pipes) for _ in range(2)]
    said = {process.pid: process.communicate() for process in both}
    codes = {process.pid: process.returncode for process in both}
    assert sorted(codes.values()) in ([0, 2], [0, 0]), said
    for pid, (out, error) in said.items():
        if codes[pid] == 0:
            assert "336 train images of 10 classes" in out
        else:
            (winner,) = codes.keys() - {pid}
            words = " ".join(error.split())  # of several lines
            assert re.search(rf"runs/digits/folds: process {winner} on .* works on it", words)
    assert (tmp_path / "runs/digits/folds" / MANIFEST).is_file()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_a_launch_of_two_processes_stops_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", __file__]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.CompletedProcess:
        return subprocess.run(launch, capture_output=True, text=True, env=environment, timeout=300)

    fold = Path("runs/tiny/exp/stage1/fold0")
    with child(fold) as (process, _):
        found = start()
        assert found.returncode and f"{fold}: process {process.pid} on" in found.stderr
    found = start()  # only one of the two takes the lock
    assert found.returncode == 0, found.stderr
    assert (fold / MANIFEST).is_file()


# ---- the lock ----------------------------------------------------------------------------------


def test_a_killed_process_holds_nothing_though_its_children_live(tmp_path):
    with child(tmp_path / "d", "fork") as (process, said):
        assert said == "held\n"
        with pytest.raises(UserError):
            own(tmp_path / "d")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        own(tmp_path / "d")
        let_go(tmp_path / "d")


def test_overwriting_a_directory_keeps_its_lock_and_leaves_it_out_of_the_manifest(tmp_path):
    write_text(tmp_path / "d" / "old.txt", "old")
    work = Work(tmp_path / "d", {}, {}, overwrite=True)
    assert (tmp_path / "d" / "old.txt").exists()
    with child(tmp_path / "d") as (_, said):
        assert f"process {os.getpid()} on" in said
    write_text(work.directory / "new.txt", "new")
    work.finish(["new.txt"])
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [MANIFEST, "new.txt"]
    with child(tmp_path / "d") as (_, said):
        assert said == "held\n"


def test_whoever_waits_goes_on_when_the_other_has_ended(tmp_path):
    with child(tmp_path / "d") as (process, _):
        process.stdin.close()  # it ends
        with locked(tmp_path / "d"):
            process.wait()
            with child(tmp_path / "d") as (_, said):
                assert f"process {os.getpid()} on" in said


def test_other_processes_of_a_launch_go_in_without_a_lock(tmp_path):
    with child(tmp_path / "d") as (process, said):
        assert said == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid} on"):
            Work(tmp_path / "d", {}, {})
        assert not Work(tmp_path / "d", {}, {}, main=False).finished()
        with locked(tmp_path / "d", wait=False, main=False):
            assert process.poll() is None  # it holds the lock still


def test_where_files_cannot_be_locked_that_is_said_once(tmp_path, monkeypatch, capsys):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    for _ in range(2):
        own(tmp_path / "d")
        let_go(tmp_path / "d")
    assert capsys.readouterr().out.count("files cannot be locked here") == 1


def main() -> None:
    """What each of the two processes of a launch runs."""
    train_tiny(tiny_config(train={"epochs": 2}), "exp")


if __name__ == "__main__":
    from src import cli

    cli.run(main)
