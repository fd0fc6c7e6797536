"""How long the tail is: on the report's page, and among 01's figures."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from src.metrics import bin_names
from src.plots.style import bin_color, legend_above


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
    ax.set_title("Images per class, on a logarithmic scale")
    ax.set_xlabel("classes, most frequent first")
    legend_above(ax)
