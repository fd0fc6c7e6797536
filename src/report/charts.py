"""The panels of the page besides the learning curves."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from src.metrics import bin_names
from src.plots.style import INK, MUTED, bin_color, legend_above
from src.report.stages import Scored

PAIR = (MUTED, INK)  # before, after


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
