"""The history of a search: the score of each trial, and the score over each searched key."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from src.config.search import Range
from src.metrics import short_name, sign
from src.plots.style import BIN_COLORS, INK, MUTED, Panel, legend_above, png

BEST = BIN_COLORS["few"]


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
    best = (np.maximum if sign(metric) > 0 else np.minimum).accumulate(complete["score"].to_numpy())
    ax.step(complete["trial"], best, where="post", color=BEST, lw=1.4, label="best so far")
    ax.plot(complete["trial"], complete["score"], "o", color=INK, ms=4, label="trial")
    if len(pruned):
        ax.plot(pruned["trial"], pruned["score"], "o", mfc="none", color=MUTED, ms=4)
        ax.lines[-1].set_label("stopped early")
    ax.set_title(short_name(metric).replace("_", " ") + " by trial")
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
        best = (sign(metric) * complete["score"].to_numpy()).argmax()
        ax.plot(list(values["complete"])[best], complete["score"].iloc[best], "o", color=BEST, ms=6)
    if span.log:
        ax.set_xscale("log")
    ax.set_title(f"{short_name(metric).replace('_', ' ')} by {key}")
    ax.set_xlabel(key)
