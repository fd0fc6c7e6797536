"""The page's last figures: how far to trust the confidences, and which classes are mixed up."""

import numpy as np
import pandas as pd

from src.metrics import bin_names, by_bin
from src.plots.style import svg
from src.report.charts import confidence_panel, likelihood_panel, reliability_panel
from src.report.confusions import Confusion, thumbnail, worst_pairs
from src.report.context import Experiment, Report
from src.report.markup import (
    esc,
    missing,
    note,
    number,
    panels,
    section,
    swatch,
    table,
    thousands,
)
from src.report.overview import title
from src.report.stages import Scored, table_of


def reliability(report: Report) -> str:
    """Reliability diagrams before and after post-hoc calibration."""
    text = (
        "Above the diagonal the models are too modest, below it too sure. A dot's area is its "
        "share of the images, its line the 95 % interval; ECE is the mean distance from the "
        "diagonal, weighted by that share. In the table images are parted by the bin of the class "
        "that they are taken for, and ECE is over parts of equally many images."
    )
    parts = []
    for experiment in report.experiments:
        parts.append(f"<h3>{title(experiment)}</h3>")
        shown = {n: s for n, s in experiment.stages.items() if n in ("stage1", "posthoc")}
        if not shown:
            parts.append(missing("No out-of-fold predictions.", "02_train_stage1.py"))
            continue
        alt = f"{esc(experiment.name)}: accuracy against confidence"
        parts.append(
            panels(
                [
                    svg(lambda ax, s=shown: reliability_panel(ax, s), alt),
                    svg(lambda ax, s=shown: confidence_panel(ax, s), f"{alt}, histogram"),
                    _likelihood(experiment, report),
                ]
            )
        )
        parts.append(_by_bin(shown, report.data.classes["bin"].to_numpy()))
        if "posthoc" not in shown:
            parts.append(missing("Only before calibration.", "04_posthoc_calibrate.py"))
    return section("reliability", "Reliability", note(text) + "".join(parts))


def _likelihood(experiment: Experiment, report: Report) -> str:
    table, noise = table_of(report.data, experiment.rows), experiment.noise
    alt = f"{esc(experiment.name)}: NLL and calibration error of each stage"
    height = max(2.0, 1.0 + 0.3 * len(table))
    return svg(lambda ax: likelihood_panel(ax, table, noise), alt, 4.2, height)


def _by_bin(stages: dict[str, Scored], bins: np.ndarray) -> str:
    """Calibration of what is predicted as a class of each frequency bin, before and after."""
    found = {
        stage: by_bin(o.confidence, o.predicted == oof.label, o.predicted, bins)
        for stage, oof in stages.items()
        for o in [oof.outcomes]
    }
    header = ["predicted as", "stage", "ECE, equal mass", "confidence", "accuracy", "images"]
    rows = [
        [swatch(name), esc(stage), *map(number, facts[name][:3]), thousands(facts[name][3])]
        for name in bin_names(bins)
        for stage, facts in found.items()
        if name in facts
    ]
    return table(header, rows)


def confusions(report: Report) -> str:
    """The worst-confused pairs of classes with images."""
    text = (
        "The largest shares of a class's out-of-fold images that were taken for one other class. "
        "Left: such images, the surest mistakes first. Right: what the other class looks like."
    )
    parts = [_pairs_of(experiment, report) for experiment in report.experiments]
    return section("confusions", "Worst-confused classes", note(text) + "".join(parts))


def _pairs_of(experiment: Experiment, report: Report) -> str:
    head = f"<h3>{title(experiment)}"
    if not experiment.stages:
        return f"{head}</h3>" + missing("No out-of-fold predictions.", "02_train_stage1.py")
    stage = list(experiment.stages)[-1]
    found = worst_pairs(experiment.stages[stage], report.data)
    paths = report.data.images.set_index("image_id")["path"]
    cards = "".join(_card(pair, report.data.classes, paths) for pair in found)
    return f'{head}, {esc(stage)}</h3><div class="pairs">{cards or note("No mistakes.")}</div>'


def _card(pair: Confusion, classes: pd.DataFrame, paths: pd.Series) -> str:
    """One pair: how often, the wrong images, and images of the class they were taken for."""
    true, other = classes.iloc[pair.true], classes.iloc[pair.taken_for]
    return (
        f'<article class="pair"><header><b>{100 * pair.rate:.0f} %</b>'
        f"<span>{pair.wrong} of {pair.total} images, 95 %: {100 * pair.interval[0]:.0f} – "
        f"{100 * pair.interval[1]:.0f} %</span></header>"
        f'<div class="sides"><div><p>{_class(true)}</p>{_strip(pair.wrong_ids, paths)}</div>'
        f"<div><p><small>taken for</small> {_class(other)}</p>{_strip(pair.typical_ids, paths)}"
        "</div></div></article>"
    )


def _class(row: pd.Series) -> str:
    name = row["class_name"] or row["class_id"]
    return f"<b>{esc(name)}</b> <small>{swatch(row['bin'])}, {row['count']} images</small>"


def _strip(image_ids: tuple[str, ...], paths: pd.Series) -> str:
    """Thumbnails in a row; an image that cannot be read any more leaves a grey field."""
    cells = []
    for image_id in image_ids:
        data = thumbnail(paths[image_id])
        if data is None:
            cells.append('<span class="gone">image not found</span>')
        else:
            name = esc(image_id)
            source = f"data:image/jpeg;base64,{data}"
            cells.append(f'<img src="{source}" alt="{name}" title="{name}">')
    return f'<div class="strip">{"".join(cells)}</div>'
