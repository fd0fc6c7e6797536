"""The rooms of `src` and the stairs between them: downwards, and 04 and 06 stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = {"cli", "errors", "logits", "plan", "progress", "runtime"}  # what everyone needs
STAGES = {"prepare", "training", "rebalance", "posthoc", "inference", "ensemble"}
WITHOUT_TORCH = (
    "posthoc",
    "ensemble",
    "report",
    "fusion",
    "forecast",
    "plots",
    "config",
    "submission",
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted((ROOT / "src").rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Modules of `src` that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & MODULES.keys()) or {node.module}
    return found & MODULES.keys()


GRAPH = {module: imported(path) for module, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def rooms() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module, others in GRAPH.items():
        graph.setdefault(room(module), set()).update(room(m) for m in others)
    return {name: others - {name} for name, others in graph.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A way from some node back to itself; [] where there is none."""
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> Iterator[list[str]]:
        if node in way:
            yield [*way[way.index(node) :], node]
        elif node not in done:
            for other in sorted(graph.get(node, ())):
                yield from walk(other, [*way, node])
            done.add(node)

    return next((found for node in sorted(graph) for found in walk(node, [])), [])


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_module_imports_itself_by_way_of_others():
    assert circle(GRAPH) == []


def test_no_room_imports_itself_by_way_of_others():
    assert circle(rooms()) == []


def test_a_stage_reads_the_artifacts_of_another_and_never_its_code():
    crossed = {
        (name, other) for name in STAGES for other in rooms()[name] & STAGES if other != name
    }
    assert crossed == set()


def test_on_the_top_landing_is_only_what_everyone_needs():
    assert {path.stem for path in (ROOT / "src").glob("*.py")} == TOP | {"__init__"}


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_a_room_imports_no_torch(name):
    inside = [module for module in MODULES if room(module) == name]
    code = f"import sys, {', '.join(inside)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_metrics_import_no_torch():
    code = "import sys, src.metrics, src.logits, src.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
