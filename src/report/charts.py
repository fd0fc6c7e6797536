"""The panels of the page besides the learning curves."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from src.metrics import NORMAL, bin_names, wilson
from src.plots.style import INK, MUTED, bin_color, legend_above
from src.report.stages import Scored

PAIR = (MUTED, INK)  # before, after


def stages_panel(ax: Axes, table: pd.DataFrame, noise: dict[str, dict[str, float]]) -> None:
    """Balanced accuracy and the recall of each bin, a row for each stage, with 95 % intervals.
    Heads of stage 2 are alternatives, not one after the other: no line joins the rows.

    noise: standard errors by stage and score, where they are known
    """
    series = {"balanced_accuracy": ("balanced", INK, "D")}
    series |= {name: (name, bin_color(name), "o") for name in bin_names(np.array(table.columns))}
    place = np.arange(len(table))
    for number, (column, (label, color, mark)) in enumerate(series.items()):
        values = table[column].to_numpy(dtype=float)
        errors = [NORMAL * noise.get(stage, {}).get(column, 0.0) for stage in table.index]
        down = place + 0.17 * (number - (len(series) - 1) / 2)
        ax.errorbar(values, down, xerr=errors, fmt=mark, ms=4.5, color=color, elinewidth=1.1,
                    capsize=0, label=label)  # fmt: skip
    _stages_below(ax, table.index)
    low, high = ax.get_xlim()
    ax.set_xlim(max(-0.02, low), min(1.02, high))
    ax.set_title("Recall by class frequency")
    ax.set_xlabel("recall; balanced: the mean over classes")
    legend_above(ax)


def likelihood_panel(ax: Axes, table: pd.DataFrame, noise: dict[str, dict[str, float]]) -> None:
    """NLL of each stage with its 95 % interval, and beside it the calibration error."""
    values = table["nll"].to_numpy(dtype=float)
    errors = [NORMAL * noise.get(stage, {}).get("nll", 0.0) for stage in table.index]
    place = np.arange(len(table))
    ax.errorbar(values, place, xerr=errors, fmt="o", ms=5, color=INK, elinewidth=1.1)
    _stages_below(ax, table.index)
    if values.max() > 3 * values.min() > 0:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for row, ece in zip(place, table["ece"], strict=True):
        ax.annotate(f"ECE {ece:.3f}", (1.0, row), xycoords=("axes fraction", "data"), fontsize=8,
                    xytext=(4, 0), textcoords="offset points", va="center", color=INK)  # fmt: skip
    ax.set_title("NLL, smaller is better")
    ax.set_xlabel("nats per image")


def _stages_below(ax: Axes, stages: pd.Index) -> None:
    """A row for each stage, the first one on top."""
    names = [str(name).removeprefix("stage2/") for name in stages]
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(False, axis="y")


def reliability_panel(ax: Axes, stages: dict[str, Scored]) -> None:
    """Accuracy against confidence with its 95 % interval (Wilson), before and after; a dot's
    area is its share of the images."""
    ax.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (4, 3)))
    for (name, oof), color in zip(stages.items(), PAIR[-len(stages) :], strict=True):
        ece, confidence, accuracy, size = oof.reliability
        known = size > 0
        area = 6 + 200 * size[known] / size.sum()
        low, high = wilson(accuracy[known] * size[known], size[known])
        ax.vlines(confidence[known], low, high, color=color, lw=0.9, alpha=0.7)
        ax.plot(confidence[known], accuracy[known], color=color, lw=1.1, alpha=0.8)
        ax.scatter(
            confidence[known], accuracy[known], area, color=color, alpha=0.7, lw=0, clip_on=False
        )
        ax.plot([], [], "o-", color=color, ms=4.5, lw=1.1, label=f"{name} (ECE {ece:.3f})")
    ax.set_xlim(0, 1.03)
    ax.set_ylim(0, 1.03)
    ax.set_title("Reliability")
    ax.set_xlabel("confidence")
    ax.set_ylabel("accuracy")
    legend_above(ax, 2)


def confidence_panel(ax: Axes, stages: dict[str, Scored]) -> None:
    """Share of the images in each confidence bin."""
    for (name, oof), color in zip(stages.items(), PAIR[-len(stages) :], strict=True):
        size = oof.reliability[3]
        edges = np.linspace(0, 1, len(size) + 1)
        ax.stairs(size / size.sum(), edges, color=color, lw=1.5, label=name)
    ax.set_xlim(0, 1.03)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    ax.set_title("How sure the models are")
    ax.set_xlabel("confidence")
    ax.set_ylabel("images")
    legend_above(ax, 2)
