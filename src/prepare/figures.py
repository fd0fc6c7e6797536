"""Pictures of a dataset: how long its tail is, what its bins and its duplicates look like."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from src.artifacts.files import write_atomic
from src.data.images import load_image
from src.metrics import bin_names
from src.plots.distribution import distribution_panel
from src.plots.style import STYLE, bin_color, png

TILE = 160  # pixels
COLUMNS = 8  # images per bin
PAIRS = 8  # duplicate pairs shown


def draw_figures(
    directory: Path,
    images: pd.DataFrame,
    classes: pd.DataFrame,
    pairs: pd.DataFrame,
    paths: pd.Series,
) -> list[str]:
    """Write figures/*.png below `directory`; returns their names.

    images: folds.csv · classes: classes.csv · pairs: duplicates.csv · paths: by
    (split, image_id) the file of every image.
    """
    home = directory / "figures"
    png([partial(distribution_panel, classes=classes)], home / "class_distribution.png", 1)
    with rc_context(STYLE):
        _save(_bins(images, classes), home / "bins.png")
        if len(pairs):
            _save(_duplicates(pairs, paths), home / "duplicates.png")
        else:
            (home / "duplicates.png").unlink(missing_ok=True)
    names = ["class_distribution.png", "bins.png", *(["duplicates.png"] if len(pairs) else [])]
    return [f"figures/{name}" for name in names]


def _save(figure: Figure, path: Path) -> None:
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _bins(images: pd.DataFrame, classes: pd.DataFrame):
    """One row per bin: an image each of classes spread over the bin."""
    names = bin_names(classes["bin"].to_numpy())
    size = (COLUMNS * 1.5, len(names) * 1.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(names), COLUMNS, squeeze=False)
    for row, name in zip(grid, names, strict=True):
        for axes in row:
            axes.axis("off")
        for axes, shown in zip(row, _spread(images, classes[classes["bin"] == name]), strict=False):
            axes.imshow(_tile(shown.path))
            axes.set_title(
                f"{_short(shown.class_name.replace('_', ' '))}\n{shown.images}", fontsize=7, pad=3
            )
        row[0].text(-0.06, 0.5, name, rotation=90, va="center", ha="right", color=bin_color(name))
        row[0].texts[-1].set_transform(row[0].transAxes)
    return figure


def _spread(images: pd.DataFrame, inside: pd.DataFrame):
    """COLUMNS images of classes spread over a bin, or several of each where the classes are few."""
    ranked = inside.sort_values(["count", "label"], ascending=[False, True], kind="stable")
    picks = np.unique(np.linspace(0, len(ranked) - 1, COLUMNS).round().astype(int))
    chosen = ranked.iloc[picks].assign(rank=picks, images=ranked["count"])
    chosen = chosen[["label", "class_name", "images", "rank"]]
    shown = images[["label", "path"]].merge(chosen, on="label")
    shown["turn"] = shown.groupby("label").cumcount()
    shown = shown.sort_values(["turn", "rank"], kind="stable")[:COLUMNS]
    return shown.sort_values(["rank", "turn"], kind="stable").itertuples(name="Shown")


def _duplicates(pairs: pd.DataFrame, paths: pd.Series):
    """Pairs one above the other: conflicting labels first, then the largest distances."""
    shown = pairs.assign(rank=(pairs["conflict"] != "yes")).sort_values(
        ["rank", "distance"], ascending=[True, False], kind="stable"
    )[:PAIRS]
    size = (max(len(shown), 3) * 1.6, 4.2)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(2, len(shown), squeeze=False)
    for column, (_, pair) in zip(grid.T, shown.iterrows(), strict=True):
        for axes, side in zip(column, "ab", strict=True):
            split, image_id = pair[f"split_{side}"], pair[f"image_id_{side}"]
            axes.imshow(_tile(paths[split, image_id]))
            axes.axis("off")
            axes.set_title(f"{split}\n{_short(image_id)}", fontsize=7, pad=3)
        note = "two labels, " if pair["conflict"] == "yes" else ""
        column[1].text(0.5, -0.1, f"{note}{pair['kind']}, {pair['distance']} bits", fontsize=7)
        column[1].texts[-1].set(transform=column[1].transAxes, ha="center")
    return figure


def _tile(path: str) -> Image.Image:
    image = Image.fromarray(load_image(path))
    image.thumbnail((TILE, TILE))
    return image


def _short(text: str) -> str:
    text = text.replace("$", r"\$")
    return text if len(text) <= 20 else f"{text[:8]}…{text[-11:]}"
