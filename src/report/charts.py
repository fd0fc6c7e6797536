"""The panels of the page besides the learning curves."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from src.metrics import bin_names
from src.report.figures import INK, MUTED, bin_color, legend_above
from src.report.stages import Scored

PAIR = (MUTED, INK)  # before, after


def distribution_panel(ax: Axes, classes: pd.DataFrame) -> None:
    """Images per class, most frequent first, in the colour of the class's bin; log scale."""
    table = classes.sort_values(["count", "label"], ascending=[False, True])
    count, bins = table["count"].to_numpy(), table["bin"].to_numpy()
    shown = np.unique(np.linspace(0, len(count) - 1, 800).round().astype(int))
    for name in bin_names(bins):
        height = np.where(bins[shown] == name, count[shown], np.nan)
        if len(count) <= 150:
            ax.bar(shown, height, width=0.82, color=bin_color(name), label=name)
        else:
            ax.fill_between(shown, height, 0.5, step="mid", color=bin_color(name), label=name)
    ax.set_yscale("log")
    ax.set_ylim(min(count.min(), 1) * 0.7, count.max() * 1.35)
    ax.yaxis.set_major_locator(LogLocator(10, subs=(1, 3)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="y", which="minor", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    ax.grid(False, axis="x")
    ax.margins(x=0.01)
    ax.set_title("Images per class")
    ax.set_xlabel("classes, most frequent first")
    legend_above(ax)


def stages_panel(ax: Axes, table: pd.DataFrame) -> None:
    """Balanced accuracy and the recall of each bin, stage after stage."""
    stages = [str(name).removeprefix("stage2/").split(" ")[0] for name in table.index]
    lines = {"balanced_accuracy": ("balanced", INK, "--")}
    lines |= {name: (name, bin_color(name), "-") for name in bin_names(np.array(table.columns))}
    for column, (label, color, style) in lines.items():
        values = table[column].to_numpy(dtype=float)
        ax.plot(range(len(stages)), values, style, color=color, lw=1.5, marker="o", ms=4.5,
                label=label)  # fmt: skip
    ax.set_xticks(range(len(stages)), stages)
    ax.set_xlim(-0.3, len(stages) - 0.7)
    values = table[list(lines)].to_numpy(dtype=float)
    low, high = np.nanmin(values), np.nanmax(values)
    ax.set_ylim(max(0, np.floor(10 * low - 0.5) / 10), min(1.02, np.ceil(10 * high + 0.5) / 10))
    ax.grid(False, axis="x")
    ax.set_title("Recall by class frequency, stage by stage")
    legend_above(ax)


def reliability_panel(ax: Axes, stages: dict[str, Scored]) -> None:
    """Accuracy against confidence, before and after; a dot's area is its share of the images."""
    ax.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (4, 3)))
    for (name, oof), color in zip(stages.items(), PAIR[-len(stages) :], strict=True):
        ece, confidence, accuracy, size = oof.reliability
        known = size > 0
        area = 6 + 200 * size[known] / size.sum()
        ax.plot(confidence[known], accuracy[known], color=color, lw=1.1, alpha=0.8)
        ax.scatter(confidence[known], accuracy[known], area, color=color, alpha=0.7, lw=0)
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
