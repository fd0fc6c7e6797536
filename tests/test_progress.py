"""How far work has come: bars on a terminal, a line now and then elsewhere, never beyond 120."""

import io
import sys
import time

import pytest

import src.progress as progress_module
from src import cli
from src.progress import duration, each, progress

WIDTH = cli.WIDTH


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves; nothing is a terminal."""
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cli, "said_at", now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    return now


def test_a_log_gets_a_line_every_half_minute(clock, capsys):
    with progress(100, "fold0 epoch 1/2", "steps") as bar:
        for _ in range(100):
            clock[0] += 1
            bar.update()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "fold0 epoch 1/2: 30/100 steps (30 %), 1 s each, 70 s left",
        "fold0 epoch 1/2: 60/100 steps (60 %), 1 s each, 40 s left",
        "fold0 epoch 1/2: 90/100 steps (90 %), 1 s each, 10 s left",
    ]


def test_many_short_works_are_not_silent_together_and_words_are_a_sign_of_life(clock, capsys):
    for number in range(4):
        for _ in each(range(2), f"view {number}", "img"):
            clock[0] += 10
    assert capsys.readouterr().out.splitlines() == [
        "view 1: 1/2 img (50 %), 10 s each, 10 s left",  # after 30 s, and after 60
        "view 2: 2/2 img (100 %), 10 s each, 0 ms left",
    ]
    cli.say("an epoch")
    capsys.readouterr()
    for _ in each(range(2), "epoch", "steps"):
        clock[0] += 14
    assert capsys.readouterr().out == ""


def test_what_is_quick_or_silent_or_another_process_says_nothing(clock, capsys, monkeypatch):
    assert list(each("abc", "letters", "letters")) == list("abc")
    with progress(2, None) as bar:
        clock[0] += 100
        bar.update()
    monkeypatch.setenv("RANK", "1")
    for _ in each(range(3), "folds", "folds"):
        clock[0] += 100
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress(4, "fold0 features") as bar:
        bar.update(4)
        bar.bar.refresh()
        cli.say("beside it")
    assert "fold0 features: 100%" in screen.getvalue()
    assert capsys.readouterr().out == "beside it\n"
    assert max(len(part) for part in screen.getvalue().split("\r")) <= WIDTH


def test_it_costs_next_to_nothing(clock):
    with progress(10**6, "steps", "steps") as bar:
        began = time.process_time()
        for _ in range(20_000):
            bar.update()
        assert (time.process_time() - began) / 20_000 < 20e-6  # a step takes milliseconds


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.025, "25 ms"), (41, "41 s"), (600, "10 min"), (3600, "1.0 h"), (190_000, "2.2 days")],
)
def test_durations_are_read_at_a_glance(seconds, told):
    assert duration(seconds) == told


def test_long_lines_are_cut_between_words_and_commands_stay_whole(monkeypatch):
    monkeypatch.setattr(cli, "WIDTH", WIDTH)
    told = "copied 312 of 314 tensors; left new: " + ", ".join(
        f"head.{i}.weight" for i in range(20)
    )
    path = "x" * 130
    lines = cli.wrapped(f"  {told}\nshort\n{path} after").split("\n")
    assert all(len(line) <= WIDTH for line in lines if path not in line)
    assert lines[1].startswith("    ") and "short" in lines and path in lines
    command = "`python 02_train_stage1.py --folds 0 1`"
    assert command in cli.wrapped(f"{'a ' * 45} {command} and more")
    assert " ".join(" ".join(lines).split()) == " ".join(f"{told} short {path} after".split())
