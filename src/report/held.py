"""Does what gains out of fold gain on the test images? Where a solution is there, the scatter.

A point is a head or the calibrated logits against stage 1 of the same experiment: the gain out of
fold (cross-fitted for 04's) and the gain of the same head on the test images, both by the
competition's metric and with their 95 % intervals.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from src.artifacts.dataset import Dataset
from src.artifacts.files import read_json, read_table
from src.artifacts.predictions import load_predictions
from src.artifacts.work import MANIFEST, checked
from src.errors import UserError
from src.metrics import NORMAL, Gain, metric_of, outcomes_of, paired_gain, short_name
from src.plots.style import INK, MUTED, TERM_COLORS, svg
from src.report.context import Experiment, Report
from src.report.markup import details, esc, note, section, table
from src.submission.solution import find_solution, true_classes
from src.submission.write import COLUMNS

NAMED = 12  # points that have their heads' names beside them
FEWEST = 4  # points for a correlation: three are on a line too easily


@dataclass(frozen=True)
class Point:
    experiment: str
    head: str
    oof: Gain
    test: Gain


def transfer(report: Report) -> str:
    """The scatter and its correlation; empty without a solution or predictions."""
    truth = test_labels(report.data)
    if truth is None:
        return ""
    points = [p for e in report.experiments for p in points_of(e, report.data, truth)]
    if not points:
        return ""
    metric = short_name(report.experiments[0].config.metric).replace("_", " ")
    figure = svg(lambda ax: _panel(ax, points, metric), "gain out of fold against gain on the test",
                 4.4, 3.4)  # fmt: skip
    text = (
        f"Gain over stage 1 by {esc(metric)}: out of fold (what 04 and 06 choose by) against the "
        f"{len(truth)} test images of the solution, which chose nothing; on the dashed "
        f"line both are the same. {_correlation(points)}"
    )
    rows = [
        [esc(p.experiment), esc(p.head), *(str(g).replace("-", "−") for g in (p.oof, p.test))]
        for p in points
    ]
    body = f'<figure class="large">{figure}{_key(points)}</figure>'
    every = table(["experiment", "head", "out of fold", "test"], rows, "text")
    body += details("Every point", every)
    return section("transfer", "Out of fold against test", note(text) + body)


def _key(points: list[Point]) -> str:
    """Which colour is which experiment, where there are several; names may be long."""
    colors = _colors(points)
    items = "".join(
        f'<li><span class="dot" style="--c:{color}"></span>{esc(name)}</li>'
        for name, color in colors.items()
    )
    return f'<ul class="key">{items}</ul>' if len(colors) > 1 else ""


def _colors(points: list[Point]) -> dict[str, str]:
    names = dict.fromkeys(p.experiment for p in points)
    return {name: TERM_COLORS[i % len(TERM_COLORS)] for i, name in enumerate(names)}


def _places(points: list[Point]) -> dict[tuple[float, float], list[str]]:
    """The heads at each place of the scatter: what 04 took unchanged is where its head is."""
    found: dict[tuple[float, float], list[str]] = {}
    for p in points:
        found.setdefault((round(p.oof.value, 6), round(p.test.value, 6)), []).append(p.head)
    return found


def _correlation(points: list[Point]) -> str:
    """In words; the same place counts once."""
    x, y = np.array(list(_places(points))).T
    if len(x) < FEWEST or not (x.std() and y.std()):
        return "Too few different heads for a correlation."
    agree = int((np.sign(x) == np.sign(y)).sum())
    r = np.corrcoef(x, y)[0, 1]
    return f"Of {len(x)} different ones {agree} have the same sign; correlation {r:.2f}."


def test_labels(data: Dataset) -> pd.Series | None:
    """Labels by image_id of the test images whose only true class the solution names; None where
    there is no solution, or it is not one of images and known classes."""
    try:
        path = find_solution(data, None)
        if path is None:
            return None
        told = read_json(data.directory / MANIFEST, COLUMNS)["submission"]
        ids = data.classes["class_id"].tolist()
        found = true_classes(read_table(checked(path)), path, told, ids)
    except UserError:
        return None
    found = found.drop_duplicates("image_id", keep=False)
    label = pd.Series(pd.Index(ids).get_indexer(found["class_id"]), index=found["image_id"])
    label = label[(label >= 0) & label.index.isin(data.test["image_id"])].sort_index()
    return label if len(label) else None


def points_of(experiment: Experiment, data: Dataset, truth: pd.Series) -> list[Point]:
    """A point per head with both gains; logits are read one file at a time."""
    metric, home = experiment.config.metric, experiment.home / "predict"
    if "predict" not in experiment.manifests or metric_of(metric).wide:
        return []
    found = {}
    for stage in ["stage1", *experiment.gains]:
        path = home / f"{stage.removeprefix('stage2/')}.npz"
        if path.is_file():
            found[stage] = _outcome(path, data, truth, metric)
    if "stage1" not in found:
        return []
    labels = truth.to_numpy()
    return [
        Point(experiment.name, stage.removeprefix("stage2/"), gain,
              paired_gain(found["stage1"], found[stage], labels, data.num_classes, metric))
        for stage, gain in experiment.gains.items()
        if stage in found
    ]  # fmt: skip


def _outcome(path: Path, data: Dataset, truth: pd.Series, metric: str) -> np.ndarray:
    told = load_predictions(path, data.num_classes)
    rows = np.searchsorted(told.image_id, truth.index.to_numpy(str))
    return outcomes_of(told.logits[rows], truth.to_numpy(), metric).of(metric)


def _panel(ax: Axes, points: list[Point], metric: str) -> None:
    for name, color in _colors(points).items():
        own = [p for p in points if p.experiment == name]
        x, y = ([getattr(p, side).value for p in own] for side in ("oof", "test"))
        wide, tall = ([NORMAL * getattr(p, side).noise for p in own] for side in ("oof", "test"))
        ax.errorbar(x, y, tall, wide, fmt="o", ms=5, color=color, ecolor=color, elinewidth=0.8,
                    alpha=0.85)  # fmt: skip
    places = _places(points)
    for place, heads in places.items() if len(places) <= NAMED else ():
        label = ", ".join(dict.fromkeys(heads))
        ax.annotate(label, place, xytext=(4, 4), textcoords="offset points", fontsize=8, color=INK,
                    parse_math=False)  # fmt: skip
    low = min(ax.get_xlim()[0], ax.get_ylim()[0])
    high = max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot([low, high], [low, high], color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=0)
    ax.axhline(0, color=MUTED, lw=0.6, zorder=0)
    ax.axvline(0, color=MUTED, lw=0.6, zorder=0)
    ax.set_title(f"Gain over stage 1, {metric}")
    ax.set_xlabel("out of fold")
    ax.set_ylabel("test")
