"""The user's own metric: `python:path/to/file.py:function`, the one code of others that is run.

    def cost(labels, predicted): ...          labels [N] and predicted labels [N], whole numbers
    def cost(labels, probabilities): ...      labels [N] and probabilities [N, K]

The names of the two parameters decide what is given. It returns one finite number, larger is better
unless the function has `cost.greater_is_better = False` or the config says so. It is also scored on
images drawn with replacement, so it must work where classes are absent.
"""

import difflib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from src.config.metric import MetricText
from src.errors import UserError

TAKES = ("predicted", "probabilities")


@dataclass(frozen=True)
class OwnMetric:
    """function: (labels, `takes`) → a number · takes: predicted or probabilities"""

    function: Callable
    takes: str
    lower_is_better: bool


def own_metric(what: MetricText) -> OwnMetric:
    """Run the file and check the function. Errors: UserError for no such file or function, a file
    that does not run, other parameters."""
    path = Path(what.file)
    if not path.is_file():
        raise UserError(
            f"metric: {path}: no such file; expected python:path/to/file.py:function, its path "
            "from where the scripts run"
        )
    names = _names(path.resolve(), path.stat().st_mtime_ns)
    function = names.get(what.function)
    if not callable(function):
        near = difflib.get_close_matches(
            what.function, [n for n, f in names.items() if callable(f)], 1
        )
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"metric: {path} has no function {what.function}{hint}")
    lower = what.lower
    if lower is None:
        lower = not getattr(function, "greater_is_better", True)
    return OwnMetric(function, _takes(function, f"metric: {path}:{what.function}"), lower)


@lru_cache
def _names(path: Path, changed: int) -> dict:
    """What a file defines, run once for each version of it."""
    spec = importlib.util.spec_from_file_location(f"own_metric_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"metric: {path} does not run: {type(error).__name__}: {error}") from error
    return vars(module)


def _takes(function: Callable, where: str) -> str:
    parameters = list(inspect.signature(function).parameters.values())
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if len(needed) != 2 or needed[0] != "labels" or needed[1] not in TAKES:
        raise UserError(
            f"{where}({', '.join(p.name for p in parameters)}): expected (labels, predicted) for "
            "predicted labels [N] or (labels, probabilities) for [N, K]; more parameters need "
            "defaults"
        )
    if any(p.name in needed and p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
        raise UserError(f"{where}: {' and '.join(needed)} must be ordinary parameters")
    return needed[1]
