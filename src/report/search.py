"""The history of a search: the score of each trial, and the score over each searched key.

As history.png beside the trials, and on the report page.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from src.artifacts import MANIFEST, read_json, read_table
from src.report.context import Experiment, Report
from src.report.figures import BIN_COLORS, INK, MUTED, Panel, legend_above, png, svg
from src.report.markup import esc, note, panels, section
from src.report.overview import title
from src.schema_search import Range
from src.search_result import BEST as WINNER
from src.search_result import found_text

BEST = BIN_COLORS["few"]


def searches(report: Report) -> str:
    """What each search tried and found; empty where nothing was searched."""
    parts = [_searches_of(experiment) for experiment in report.experiments]
    if not any(parts):
        return ""
    text = (
        "Scores are those that settings were chosen by: of stage 1 on a part of one fold's "
        "training images, of heads on the held-out images of all folds but one."
    )
    return section("search", "Searched settings", note(text) + "".join(parts))


def _searches_of(experiment: Experiment) -> str:
    found = [experiment.home / "search", *sorted(experiment.home.glob("stage2/*/search"))]
    parts = [_one(experiment, path) for path in found if (path / MANIFEST).is_file()]
    return f"<h3>{title(experiment)}</h3>" + "".join(parts) if parts else ""


def _one(experiment: Experiment, directory: Path) -> str:
    """The winner in words, and the panels of history.png."""
    keys = read_json(directory / MANIFEST)["settings"]["search"]["keys"]
    ranges = {key: Range.model_validate(span) for key, span in keys.items()}
    numbers = [key for key, span in ranges.items() if span.choices is None]
    trials = read_table(directory / "trials.csv", ("trial", "score", *numbers))
    best, name = read_json(directory / WINNER), directory.relative_to(experiment.home)
    drawn = [
        svg(panel, f"{esc(experiment.name)}: {esc(name)}, {esc(what)}")
        for what, panel in history_panels(trials, ranges, best["metric"]).items()
    ]
    return note(f"<code>{esc(name)}</code>: {esc(found_text(best))}") + panels(drawn)


def draw_history(trials: pd.DataFrame, keys: dict[str, Range], metric: str, path: Path) -> Path:
    """Write history.png. trials: the rows of trials.csv."""
    return png(list(history_panels(trials, keys, metric).values()), path)


def history_panels(trials: pd.DataFrame, keys: dict[str, Range], metric: str) -> dict[str, Panel]:
    """The figure's panels by name: the history, and one for each searched key."""
    return {"history": partial(_history, trials=trials, metric=metric)} | {
        key: partial(_key, trials=trials, key=key, span=span, metric=metric)
        for key, span in keys.items()
    }


def _split(trials: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    scored = trials[trials["score"].notna()]
    complete = scored["state"] == "complete"
    return scored[complete], scored[~complete]


def _history(ax: Axes, trials: pd.DataFrame, metric: str) -> None:
    complete, pruned = _split(trials)
    best = np.maximum.accumulate(complete["score"].to_numpy())
    ax.step(complete["trial"], best, where="post", color=BEST, lw=1.4, label="best so far")
    ax.plot(complete["trial"], complete["score"], "o", color=INK, ms=4, label="trial")
    if len(pruned):
        ax.plot(pruned["trial"], pruned["score"], "o", mfc="none", color=MUTED, ms=4)
        ax.lines[-1].set_label("stopped early")
    ax.set_title(metric.replace("_", " ") + " by trial")
    ax.set_xlabel("trial")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    legend_above(ax)


def _key(ax: Axes, trials: pd.DataFrame, key: str, span: Range, metric: str) -> None:
    complete, pruned = _split(trials)
    values = {name: rows[key] for name, rows in (("complete", complete), ("pruned", pruned))}
    if span.choices is not None:
        names = [str(choice) for choice in span.choices]
        values = {name: [names.index(str(v)) for v in rows] for name, rows in values.items()}
        ax.set_xticks(range(len(names)), names)
    ax.plot(values["pruned"], pruned["score"], "o", mfc="none", color=MUTED, ms=4)
    ax.plot(values["complete"], complete["score"], "o", color=INK, ms=4)
    if len(complete):
        best = complete["score"].to_numpy().argmax()
        ax.plot(list(values["complete"])[best], complete["score"].iloc[best], "o", color=BEST, ms=6)
    if span.log:
        ax.set_xscale("log")
    ax.set_title(f"{metric.replace('_', ' ')} by {key}")
    ax.set_xlabel(key)
