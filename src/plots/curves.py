"""Learning curves: one thin line per fold and a thick one for their mean."""

from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from src.artifacts.dataset import FULL
from src.artifacts.files import read_table
from src.artifacts.work import made
from src.plots.style import INK, MUTED, TERM_COLORS, Panel, bin_color, legend_above, png

BINS = ("many", "medium", "few", "head", "tail")
Metrics = dict[str, pd.DataFrame]


def load_curves(stage1: Path) -> Metrics:
    """metrics.csv of every fold (and `full`) under a stage1 directory, by the fold's name."""
    order = sorted(made(stage1, "metrics.csv"), key=lambda path: len(path.parent.name))
    found = {path.parent.name: numeric(read_table(path)) for path in order}
    full = {name: found.pop(name) for name in (FULL,) if name in found}
    return found | full


def numeric(table: pd.DataFrame) -> pd.DataFrame:
    """Every cell as a number; what is none (epochs without validation) becomes NaN."""
    return table.apply(pd.to_numeric, errors="coerce")


def draw_curves(metrics: Metrics, path: Path) -> Path:
    """Write the learning curves of all folds of an experiment as one PNG.

    metrics: one table per fold (`fold0`, …, `full`), the rows of its metrics.csv.
    """
    return png(list(curve_panels(metrics).values()), Path(path))


def curve_panels(metrics: Metrics) -> dict[str, Panel]:
    """The figure's panels by name, without those that have nothing to show."""
    metrics = {name: numeric(table) for name, table in metrics.items() if len(table)}
    terms = sorted({c for t in metrics.values() for c in t if c.startswith("loss_")})
    loss = {"loss": ("total", INK)}
    if len(terms) > 1:  # a single term is the total
        colors = [TERM_COLORS[i % len(TERM_COLORS)] for i in range(len(terms))]
        loss |= {t: (t.removeprefix("loss_"), c) for t, c in zip(terms, colors, strict=True)}
    score = {
        "accuracy": ("accuracy", MUTED),
        "balanced_accuracy": ("balanced accuracy", INK),
    }
    recall = {name: (name, bin_color(name)) for name in BINS}
    panels = {
        "loss": (loss, "Training loss", None),
        "score": (score, "Held-out fold", (0, 1)),
        "bins": (recall, "Held-out fold: recall by class frequency", (0, 1)),
        "lr": ({"lr": ("folds", INK)}, "Learning rate", None),
    }
    return {
        name: partial(_panel, metrics=metrics, lines=lines, title=title, limits=limits)
        for name, (lines, title, limits) in panels.items()
        if any(c in t and t[c].notna().any() for t in metrics.values() for c in lines)
    }


def _panel(ax: Axes, metrics: Metrics, lines: dict, title: str, limits) -> None:
    for column, (label, color) in lines.items():
        _lines(ax, metrics, column, label, color)
    ax.set_title(title)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    last = max(float(table["epoch"].max()) for table in metrics.values())
    ax.set_xlim(1 - 0.02 * last, 1.02 * last)  # the same for all panels
    if limits:
        ax.set_ylim(*limits)
    elif all(line.get_ydata().min(initial=0) >= 0 for line in ax.get_lines()):
        ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    if len(lines) > 1 or FULL in metrics:
        legend_above(ax)


def _lines(ax: Axes, metrics: Metrics, column: str, label: str, color: str) -> None:
    """Each fold thin, their mean thick; `full`, which has no held-out images, dotted."""
    every = {
        name: table.set_index("epoch")[column].dropna()
        for name, table in metrics.items()
        if column in table
    }
    every = {name: values for name, values in every.items() if len(values)}
    full = every.pop(FULL, None)
    if len(every) > 1:
        for values in every.values():
            ax.plot(values.index, values.to_numpy(), color=color, lw=0.7, alpha=0.35)
    if every:
        mean = pd.concat(every.values(), axis=1).mean(axis=1).sort_index()
        marker = "o" if len(mean) == 1 else None
        ax.plot(mean.index, mean.to_numpy(), color=color, lw=1.7, label=label, marker=marker, ms=4)
    if full is not None:
        name = "on all images" if column in ("loss", "lr") else None
        ax.plot(full.index, full.to_numpy(), ":", color=color, lw=1.4, label=name)
