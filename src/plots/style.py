"""How every figure of this project looks: one palette, one typography, PNG or inline SVG.

The SVGs carry no colour of their own for text and axes (`currentColor`) and no fonts, so they
follow the light or dark page they are put into.
"""

import io
import re
from collections.abc import Callable
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.artifacts.files import write_atomic

# Blue, amber, brick: apart in hue and in lightness, also for colour-blind readers.
BIN_COLORS = {"many": "#2f6db5", "medium": "#e0a030", "few": "#c0492b"}
BIN_COLORS |= {"head": BIN_COLORS["many"], "tail": BIN_COLORS["few"]}
INK, MUTED = "#1c2126", "#8b929b"
TERM_COLORS = ("#5b8c7b", "#8a6fae", "#a67c52", "#7f8fa6", "#b0698f")

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 22,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": MUTED,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.3,
    "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.major.width": 0.7,
    "svg.fonttype": "none",
    "svg.hashsalt": "src.report",
}

Panel = Callable[[Axes], None]


def bin_color(name: str) -> str:
    """The colour of a bin, the same in every figure and table."""
    return BIN_COLORS.get(name, MUTED)


def legend_above(ax: Axes, columns: int = 4) -> None:
    """A one-line legend between the title and the plot."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=columns, borderaxespad=0.2)


def svg(panel: Panel, alt: str, width: float = 4.2, height: float = 2.75) -> str:
    """Draw one panel as an `<svg>` element to put into a page; the same bytes every time.

    alt: text for readers who do not see it, already HTML. width, height: inches at full size.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        panel(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), alt)


def _inline(text: str, alt: str) -> str:
    """The bare element: no prolog, no metadata, no namespaces, ids of its own, themed ink."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", text, count=5)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)  # names of parts, never referred to
    text = text.replace(INK, "currentColor").replace("xlink:href", "href")
    return text.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)


def png(panels: list[Panel], path: Path, columns: int = 2) -> Path:
    """Draw panels side by side into one PNG file, atomically."""
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6 * columns, 2.9 * rows), layout="constrained", dpi=130)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
        for index, panel in enumerate(panels):
            panel(figure.add_subplot(rows, columns, index + 1))
        return write_atomic(
            path, lambda file: figure.savefig(file, format="png", metadata={"Software": None})
        )
