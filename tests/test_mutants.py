"""The driver of `python -m tests.mutants`, with mutants made by hand; and its operators, where
tests/mutants/requirements.txt is installed."""

import pytest

from src.artifacts.files import read_table
from tests.conftest import ROOT
from tests.mutants import child
from tests.mutants.child import KILLED, SURVIVED, TIMEOUT, Chosen, attempt, reached

PATH, FILE = "src/metrics/outcomes.py", "tests/test_metrics.py"
LINE = "    return (logits >= true).sum(1)\n"
SOURCE = (ROOT / PATH).read_text(encoding="utf-8")
TIES = f"{FILE}::test_top5_counts_ties_against_the_true_class"


@pytest.mark.parametrize(
    "mutated, result",
    [
        (LINE.replace(">=", ">"), KILLED),
        (LINE.replace(".sum(1)", ".sum(axis=1)"), SURVIVED),
        ("    while True:\n        pass\n", TIMEOUT),
    ],
)
def test_what_differs_is_killed_and_what_does_not_lives(mutated, result, tmp_path, monkeypatch):
    monkeypatch.setattr(child, "LEAST", 1)
    assert SOURCE.count(LINE) == 1
    found = attempt(PATH, SOURCE.replace(LINE, mutated), {FILE: chosen(TIES)}, tmp_path)
    assert (found.result, found.by) == (result, TIES if result == KILLED else "")


def chosen(*names: str, known: tuple[str, ...] = ()) -> Chosen:
    return Chosen(dict.fromkeys(names, 0.1), frozenset((*names, *known)))


def test_a_module_that_cannot_be_imported_is_killed(tmp_path):
    found = attempt(PATH, "import no_such_module\n", {FILE: chosen(TIES)}, tmp_path)
    assert (found.result, found.by) == (KILLED, "tests/conftest.py (import)")


def test_which_tests_reach_a_line(tmp_path):
    """What attempts choose from; and what is not known is run, as its name may be the mutant's."""
    found = reached(FILE, [PATH], tmp_path)
    tests = found["lines"][PATH][str(SOURCE.splitlines(True).index(LINE) + 1)]
    other = f"{FILE}::test_a_gain_is_shown_with_its_interval"
    assert TIES in tests and other in found["costs"].keys() - set(tests)
    assert found["costs"][TIES] >= 0
    source = SOURCE.replace(LINE, LINE.replace(">=", ">"))
    every = [name for name in found["costs"] if name != TIES]
    passing = {FILE: chosen(other, known=(TIES,))}
    assert attempt(PATH, source, passing, tmp_path).result == SURVIVED
    with_new = {FILE: chosen(other, known=(*set(every) - {other},))}
    assert attempt(PATH, source, with_new, tmp_path).by == TIES


def test_operators_leave_alone_what_only_says_something():
    pytest.importorskip("mutmut")
    from tests.mutants.operators import mutants

    source = '''"""Doc 1."""
import os
LIMIT = 2
def f(x: int = 1) -> int:
    """Doc 2."""
    if x < LIMIT and os.sep:
        raise ValueError("less than " + str(2))
    return g(x, "a", key=f"{x + 1}", why="some words")
zip("", os.environ, strict=True)
'''
    found = mutants("src/a.py", source)
    call = 'return g(x, "a", key=f"{x + 1}", why="some words")'
    assert {(m.before, m.after) for m in found} == {
        ("LIMIT = 2", "LIMIT = 3"),
        ("LIMIT = 2", "LIMIT = None"),
        ("def f(x: int = 1) -> int:", "def f(x: int = 2) -> int:"),
        ("if x < LIMIT and os.sep:", "if x <= LIMIT and os.sep:"),
        ("if x < LIMIT and os.sep:", "if x < LIMIT or os.sep:"),
        (call, "return"),
        (call, call.replace('"a"', '"XXaXX"')),
        (call, call.replace("x, ", "", 1)),
        (call, call.replace('"a", ', "")),
        (call, call.replace('key=f"{x + 1}", ', "")),
        (call, call.replace(', why="some words"', ", ")),
        ('zip("", os.environ, strict=True)', 'zip("XXXX", os.environ, strict=True)'),
        ('zip("", os.environ, strict=True)', "zip(os.environ, strict=True)"),
        ('zip("", os.environ, strict=True)', 'zip("", strict=True)'),
    }
    assert {m.lines for m in found if m.before == call} == {(8, 8)}
    assert [m.imported for m in found[:3]] == [True, True, False]


def test_the_equivalent_are_of_lines_that_are_there():
    reasons = read_table(ROOT / "tests" / "mutants" / "equivalent.csv")
    for line in reasons.to_dict("records"):
        text = " ".join((ROOT / line["path"]).read_text(encoding="utf-8").split())
        assert line["before"] in text and line["before"] != line["after"] and line["why"], line
