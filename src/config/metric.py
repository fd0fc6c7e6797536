"""The competition's metric: one short text in every config, manifest and table.

What is short stays short (`macro_f1`, `top3`, `map5`, `f0.5`); `{name: topk, k: 3}` says the same
in keys. All spellings become one text here, and `parse` takes it apart again.

    {name: topk, k: 3}                        top3
    {name: mapk, k: 5}                        map5
    {name: f_beta, beta: 0.5}                 f0.5
    {name: kappa, order: [2, 0, 1]}           kappa:2,0,1
    {name: python, file: my.py, function: f}  python:my.py:f
    {…, greater_is_better: false}             python:my.py:f:lower
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from src.config.other_words import METRICS

PLAIN = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "weighted_f1",
    "log_loss",
    "macro_auc",
)
FAMILIES = {  # and the keys they need
    "topk": ("k",),
    "mapk": ("k",),
    "f_beta": ("beta",),
    "kappa": (),
    "python": ("file", "function"),
}
OPTIONAL = {"kappa": ("order",), "python": ("greater_is_better",)}
FORMS = (
    f"{', '.join(PLAIN)}, kappa (quadratic), top<k> as in top5, map<k>, f<beta> as in f0.5 "
    "(averaged over classes; f1 is macro_f1), python:path/to/file.py:function"
)
PYTHON = re.compile(r"python:(?P<file>.+\.py):(?P<function>\w+)(:(?P<order>lower|greater))?")


@dataclass(frozen=True)
class MetricText:
    """What a metric's text says.

    name: of PLAIN or FAMILIES · k: of topk and mapk · beta: of f_beta · order: the place on the
    scale of each class, by label, for kappa; empty: the order of the labels · file, function: of
    python · lower: whether the config says that lower is better; None: it does not say
    """

    name: str
    k: int = 0
    beta: float = 1.0
    order: tuple[int, ...] = ()
    file: str = ""
    function: str = ""
    lower: bool | None = None


def parse(text: str) -> MetricText:
    """Errors: ValueError for a text that is no metric."""
    if text in (*PLAIN, "kappa"):
        return MetricText(text)
    if found := re.fullmatch(r"(top|map)([1-9]\d{0,5})", text):
        return MetricText(f"{found[1]}k", k=int(found[2]))
    if (found := re.fullmatch(r"f(\d+(?:\.\d+)?)", text)) and 0 < float(found[1]) <= 100:
        return MetricText("f_beta", beta=float(found[1]))
    if found := re.fullmatch(r"kappa:(\d+(?:,\d+)+)", text):
        return MetricText("kappa", order=_checked(tuple(map(int, found[1].split(",")))))
    if found := PYTHON.fullmatch(text):
        lower = None if found["order"] is None else found["order"] == "lower"
        return MetricText("python", file=found["file"], function=found["function"], lower=lower)
    near = difflib.get_close_matches(text, [*PLAIN, "kappa", "top5", "map5", "f0.5"], 1)
    near = [METRICS[text.lower()]] if text.lower() in METRICS else near
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"found {text!r}, which is no metric{hint} Known are {FORMS}")


def own_files(text: str) -> dict[str, Path]:
    """The file that a metric of the user's is in, by the name it has among a stage's inputs."""
    found = PYTHON.fullmatch(text)
    return {"metric": Path(found["file"])} if found else {}


def short_name(text: str) -> str:
    """As tables show it: `kappa` without its order, of a function its name."""
    found = PYTHON.fullmatch(text)
    if found:
        return found["function"]
    return "kappa" if text.startswith("kappa:") else text


def unit(scored_by: str) -> str:
    """What a gain is counted in, by a metric's text or `nll`."""
    return "NLL (nats)" if scored_by == "nll" else short_name(scored_by).replace("_", " ")


def metric_text(value: Any) -> str:
    """The one text of a metric, from any of its spellings. Errors: ValueError."""
    text = _joined(value) if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError(f"found {text!r}; expected one of {FORMS}")
    return "macro_f1" if parse(text) == MetricText("f_beta") else text


def _joined(tree: dict) -> str:
    """`{name: topk, k: 3}` → `top3`."""
    name, values = tree.get("name"), {k: v for k, v in tree.items() if k != "name"}
    if name not in (*PLAIN, *FAMILIES):
        raise ValueError(f"found name {name!r}; expected one of {', '.join([*PLAIN, *FAMILIES])}")
    needed, more = FAMILIES.get(name, ()), OPTIONAL.get(name, ())
    if not set(needed) <= set(values) <= {*needed, *more}:
        raise ValueError(
            f"{name} takes the keys {', '.join((*needed, *more)) or 'none'}; found "
            f"{', '.join(map(str, values)) or 'none'}"
        )
    if name in ("topk", "mapk"):
        return f"{name[:3]}{values['k']}"
    if name == "f_beta":
        beta = values["beta"]
        return f"f{beta:g}" if isinstance(beta, int | float) else f"f{beta}"
    if name == "kappa" and "order" in values:
        order = values["order"] if isinstance(values["order"], list | tuple) else [values["order"]]
        return "kappa:" + ",".join(map(str, order))
    if name == "python":
        greater = values.get("greater_is_better")
        end = {None: "", True: ":greater", False: ":lower"}.get(greater, f":{greater}")
        return f"python:{values['file']}:{values['function']}{end}"
    return name


def _checked(order: tuple[int, ...]) -> tuple[int, ...]:
    if sorted(order) != list(range(len(order))):
        raise ValueError(
            f"kappa's order is the place of each class on the scale, by label: every number from 0 "
            f"to {len(order) - 1} once, found {list(order)}"
        )
    return order


MetricName = Annotated[str, BeforeValidator(metric_text)]
