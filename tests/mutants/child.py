"""Tests in a forked child, which has imported everything: a second instead of five for each mutant.

A child forgets the mutated module and all that import it, imports them again from the mutated
source, and runs those tests that reach the line, the quickest first, until one fails.
"""

import contextlib
import gc
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.test_imports import GRAPH, module_of

KILLED, SURVIVED, TIMEOUT = "killed", "survived", "timeout"
LEAST = 8  # seconds of the processor that a mutant has
PATIENCE = 10  # wall seconds for each of the processor: cores are shared
MEMORY = 4 * 2**30  # that a child may take beyond what it has
QUIET = ["-q", "-x", "--tb=no", "-p", "no:cacheprovider"]


@dataclass(frozen=True)
class Chosen:
    """Of one file. costs: those to run, and the seconds each takes · known: all there are; one with
    another name is run, too"""

    costs: dict[str, float]
    known: frozenset[str]


@dataclass(frozen=True)
class Outcome:
    """result: killed, survived or timeout · by: the test that failed · seconds: of the processor"""

    result: str
    by: str
    seconds: float


@cache
def preload() -> None:
    """Import what tests import, once for all children."""
    for module in ("hypothesis", "hypothesis.strategies", *GRAPH):
        if not module.endswith("__main__"):
            importlib.import_module(module)


def attempt(path: str, source: str, chosen: dict[str, Chosen], home: Path) -> Outcome:
    """Whether a test fails where the module `path` reads as `source`. chosen: by file, in the
    order in which they are run"""
    began = _spent()

    def work() -> str:
        _replace(path, source)
        for file, tests in chosen.items():
            watch = _Watch(tests)
            status = _run(file, watch, home)
            assert status != pytest.ExitCode.INTERNAL_ERROR, f"{file}: pytest failed"
            if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                return watch.failed or "tests/conftest.py (import)"
        return ""

    seconds = sum(sum(tests.costs.values()) for tests in chosen.values())
    try:
        by = forked(work, LEAST + 2 * seconds)
    except TimeoutError:
        return Outcome(TIMEOUT, "", _spent() - began)
    return Outcome(KILLED if by else SURVIVED, by, _spent() - began)


def reached(test_file: str, sources: list[str], home: Path) -> dict[str, Any]:
    """{"costs": seconds of each test, "lines": {path: {line: its tests}}}: what attempts choose
    from. Errors: AssertionError where tests fail without a mutant."""
    import coverage

    def work() -> dict:
        found = coverage.Coverage(data_file=None, include=[str(ROOT / s) for s in sources])
        watch = _Reach(found)
        for source in sources:
            _replace(source, (ROOT / source).read_text(encoding="utf-8"))
        found.start()
        status = _run(test_file, watch, home)
        found.stop()
        assert status == 0, f"{test_file}: pytest ended with {status}: {watch.failed}"
        data, lines = found.get_data(), {}
        for source in sources:
            by_line = data.contexts_by_lineno(str(ROOT / source)).items()
            lines[source] = {n: sorted({*tests} & watch.costs.keys()) for n, tests in by_line}
        return {"costs": watch.costs, "lines": lines}

    return forked(work, 600)


def forked(work: Callable[[], Any], seconds: float) -> Any:
    """What `work` returns, as JSON carries it. seconds: of the processor, ten times as many by the
    clock. Errors: TimeoutError · AssertionError with what the child said, or its end"""
    preload()
    read, write = os.pipe()
    gc.freeze()  # a child need not look through what there is
    pid = os.fork()
    if pid == 0:
        _child(work, seconds, read, write)
    gc.unfreeze()
    os.close(write)
    said, end = b"", time.monotonic() + PATIENCE * seconds
    while select.select([read], [], [], max(0.0, end - time.monotonic()))[0]:
        if not (more := os.read(read, 65536)):
            break
        said += more
    os.close(read)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not said:
        if status in (-signal.SIGKILL, -signal.SIGXCPU):
            raise TimeoutError
        said = json.dumps({"error": f"the child ended with {status}"}).encode()
    found = json.loads(said)
    assert "error" not in found, found["error"]
    return found["value"]


def _child(work: Callable[[], Any], seconds: float, read: int, write: int) -> None:
    try:
        os.setsid()
        os.close(read)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = {resource.RLIMIT_CPU: int(seconds) + 1, resource.RLIMIT_AS: size + MEMORY}
        for limit, most in limits.items():
            resource.setrlimit(limit, (most, most))
        os.chdir(ROOT)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        found = {"value": work()}
    except BaseException as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    with os.fdopen(write, "wb") as pipe:
        pipe.write(json.dumps(found).encode())
    os._exit(0)


def _spent() -> float:
    """Seconds of the processor that children have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- in the child --------------------------------------------------------------------------------


def _run(file: str, watch: "_Watch", home: Path) -> int:
    return int(pytest.main([*QUIET, f"--basetemp={home / 'tmp'}", file], plugins=[watch]))


def _replace(path: str, source: str) -> None:
    """The module at `path` is imported from `source` from now on."""
    module = module_of(ROOT / path)
    for name in dependent(module):
        sys.modules.pop(name, None)
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            vars(sys.modules[parent]).pop(child, None)
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        if name not in (__name__, "tests", "tests.mutants"):
            del sys.modules[name]
    sys.meta_path.insert(0, _Mutated(module, str(ROOT / path), source))


@cache
def dependent(module: str) -> frozenset[str]:
    """`module` and all that import it, by way of others, too."""
    found, more = set(), {module}
    while more:
        found |= more
        more = {name for name, others in GRAPH.items() if others & found} - found
    return frozenset(found)


class _Mutated(SourceFileLoader):
    """Finds one module, and loads it from another source."""

    def __init__(self, name: str, path: str, source: str):
        super().__init__(name, path)
        self.source = source

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_code(self, name):
        return compile(self.source, self.path, "exec", dont_inherit=True)


class _Watch:
    """Of pytest: runs some of the tests, the quickest first; remembers the first that fails."""

    def __init__(self, tests: Chosen):
        self.tests, self.failed = tests, ""

    def pytest_collection_modifyitems(self, items):
        costs, known = self.tests.costs, self.tests.known
        wanted = (item for item in items if item.nodeid in costs or item.nodeid not in known)
        items[:] = sorted(wanted, key=lambda item: costs.get(item.nodeid, 0.0))

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed = self.failed or f"{report.nodeid} (import)"

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed = self.failed or report.nodeid


class _Reach(_Watch):
    """Of pytest: what each test costs, and by coverage which lines it reaches. Not of slow ones."""

    def __init__(self, found):
        super().__init__(Chosen({}, frozenset()))
        self.found, self.costs = found, {}

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.get_closest_marker("slow") is None]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        began = sum(os.times()[:4])  # with the processes that it starts
        self.found.switch_context(item.nodeid)
        result = yield
        self.found.switch_context("")
        self.costs[item.nodeid] = round(sum(os.times()[:4]) - began, 3)
        return result
