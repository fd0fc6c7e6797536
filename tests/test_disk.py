"""Full disks, limits and kills in single places; tests/faults has them over all six scripts."""

import errno
import fcntl
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from src import cli
from src.artifacts import lock
from src.artifacts.files import write_bytes, write_text
from src.artifacts.whole import half_made
from src.errors import UserError
from tests.conftest import ROOT


def half_written(target: Path) -> None:
    with half_made(target) as half:
        (half / "a.txt").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_directory_has_its_name_when_it_is_whole_and_kills_leave_nothing(tmp_path):
    killed = multiprocessing.get_context("fork").Process(target=half_written, args=[tmp_path / "x"])
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL and len(names(tmp_path)) == 1
    with half_made(tmp_path / "x") as half:
        (half / "a.txt").write_text("all")
        assert names(tmp_path) == [half.name]
        os.rename(half, tmp_path / "x")
    assert names(tmp_path) == ["x"] and (tmp_path / "x" / "a.txt").read_text() == "all"


def test_what_another_process_is_making_is_left_alone(tmp_path):
    other = tmp_path / ".x.other.half"
    other.mkdir()
    handle = os.open(other, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with half_made(tmp_path / "x"):
        assert other.is_dir()
    os.close(handle)
    with pytest.raises(KeyError), half_made(tmp_path / "x"):
        raise KeyError
    assert names(tmp_path) == []


def test_a_limit_of_the_size_of_files_is_a_sentence(tmp_path):
    path = write_text(tmp_path / "a.bin", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match="a.bin: larger than a file may be here"):
            write_bytes(path, b"x" * 10000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old" and names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "x.png: the disk is full"),
        (errno.EFBIG, "x.png: larger than a file may be here"),
        (errno.EROFS, "x.png: Read-only file system; expected"),
        (errno.EACCES, "x.png: Permission denied; expected"),
    ],
)
def test_what_the_disk_says_is_a_sentence(capsys, code, says, monkeypatch):
    def main():
        raise OSError(code, os.strerror(code), "x.png")

    monkeypatch.setattr(sys, "argv", ["01"])
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 2 and says in capsys.readouterr().err


def test_other_errors_keep_their_traceback(monkeypatch):
    def main():
        raise OSError(errno.EIO, "odd")

    monkeypatch.setattr(sys, "argv", ["01"])
    with pytest.raises(OSError, match="odd"):
        cli.run(main)


def test_an_output_that_nobody_reads_ends_in_a_sentence():
    """As `python 05_predict.py … | head -1`."""
    code = "from src import cli\ndef main():\n    while True: cli.say('a line')\ncli.run(main)"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"a line\n"
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 141
    assert said.strip().startswith("stopped: nothing reads the output") and "\n" not in said.strip()


def test_another_broken_pipe_keeps_its_traceback():
    code = "from src import cli\ndef main(): raise BrokenPipeError('of a worker')\ncli.run(main)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1 and "BrokenPipeError: of a worker" in found.stderr


def test_a_full_disk_does_not_keep_anyone_from_a_lock(tmp_path, monkeypatch):
    """`/dev/full` takes nothing that is written to it."""
    monkeypatch.setattr(lock, "lock_file", lambda directory: Path("/dev/full"))
    lock.own(tmp_path)
    lock.let_go(tmp_path)
