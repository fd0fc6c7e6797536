"""The page's middle part: what was trained, and what each stage brought."""

import pandas as pd

from src.metrics import sign
from src.plots.curves import curve_panels
from src.plots.style import svg
from src.report.charts import stages_panel
from src.report.context import Experiment, Report, unfinished_folds
from src.report.markup import (
    column_name,
    esc,
    missing,
    note,
    number,
    panels,
    section,
    table,
)
from src.report.overview import title
from src.report.stages import UNTRAINED, table_of


def curves(report: Report) -> str:
    """Learning curves of each experiment."""
    parts = []
    for experiment in report.experiments:
        drawn = [
            svg(panel, f"{esc(experiment.name)}: learning curves, {name}")
            for name, panel in curve_panels(experiment.curves).items()
        ]
        nothing = (
            missing("No epoch has been logged yet.", "02_train_stage1.py")
            if experiment.config.train.epochs
            else note("Nothing was trained (<code>train.epochs: 0</code>).")
        )
        parts.append(f"<h3>{title(experiment)}</h3>" + (panels(drawn) if drawn else nothing))
    text = (
        "How training went: thin lines are single folds, thick ones their mean, dotted ones the "
        "model on all images. Scores are of the held-out fold, after the epochs that have any."
    )
    return section("curves", "Learning curves", note(text) + "".join(parts))


def stages(report: Report) -> str:
    """The per-bin table, stage by stage, of each experiment."""
    text = (
        "Every image is scored by a model that never saw it. Small figures are the change from "
        "stage 1, in brackets the 95 % interval of that by the competition's metric; the best of "
        "each column is bold; NLL and ECE are better when lower. Post-hoc and ensemble rows are "
        "cross-fitted: what was fitted never saw the images it is scored on."
    )
    if any(UNTRAINED in experiment.rows for experiment in report.experiments):
        text += " Zero-shot is the network before it saw any image, by the names of the classes."
    parts = [_stages_of(experiment, report) for experiment in report.experiments]
    return section("stages", "Stage by stage", note(text) + "".join(parts))


def _stages_of(experiment: Experiment, report: Report) -> str:
    parts = [f"<h3>{title(experiment)}</h3>"]
    if experiment.problem:
        parts.append(f'<p class="missing">{esc(experiment.problem)}</p>')
    elif not experiment.stages:
        parts.append(missing("No fold is finished.", "02_train_stage1.py"))
    else:
        scores = table_of(report.data, experiment.rows, experiment.config.metric)
        parts.append(_scores(scores, experiment))
        if len(scores) > 1:
            alt = f"{esc(experiment.name)}: recall of each bin, stage by stage"
            noise, height = experiment.noise, 1.2 + 0.42 * len(scores)
            figure = svg(lambda ax: stages_panel(ax, scores, noise), alt, 4.4, height)
            parts.append(f'<figure class="large">{figure}</figure>')
        parts += _not_yet(experiment, report)
    parts += [note(esc(reason)) for reason in experiment.optimism]
    if experiment.pseudo:
        parts.append(note(esc(experiment.pseudo)))
    return "".join(parts)


def _not_yet(experiment: Experiment, report: Report) -> list[str]:
    """A line for each stage that has not run, or not on every fold."""
    lacking = unfinished_folds(report.data, experiment.home)
    lines = []
    if lacking:
        which = ", ".join(map(str, lacking))
        lines.append(missing(f"Folds {which} of stage 1 are unfinished.", "02_train_stage1.py"))
    if not any(name.startswith("stage2/") for name in experiment.stages):
        lines.append(missing("No stage-2 head is trained.", "03_train_stage2.py"))
    return lines


def _scores(scores: pd.DataFrame, experiment: Experiment) -> str:
    """The stage table as HTML, with changes from the first stage, and the interval of that by the
    competition's metric."""
    first = next(iter(experiment.stages))
    judged = scores.columns.drop("images")
    head = ["stage", *map(column_name, scores.columns)]
    rows = []
    for stage, row in scores.iterrows():
        cells = [esc(stage), str(int(row["images"]))]
        for c in judged:
            best = scores[c].max() if sign(c) > 0 else scores[c].min()
            base = None if stage == first else scores[c][first]
            same = row[c] == row[c] and number(row[c]) == number(best)  # as they are shown
            cells.append(_cell(row[c], base, c, len(scores) > 1 and same))
            if c == experiment.config.metric and stage in experiment.gains:
                interval = str(experiment.gains[stage]).partition(" ")[2].replace("-", "−")
                cells[-1] += f"<small>{interval}</small>"
        rows.append(cells)
    return table(head, rows, "scores")


def _cell(value: float, base: float | None, column: str, best: bool) -> str:
    """A score, bold if the best of its column, and below it the change from `base`."""
    shown = f"<b>{number(value)}</b>" if best else number(value)
    if base is None:
        return shown
    change = value - base
    if not abs(change) >= 5e-4:  # too little to show, or not known
        return f"{shown}<small>±0</small>"
    kind = "up" if sign(column) * change > 0 else "down"
    mark = "+" if change > 0 else "−"
    return f'{shown}<small class="{kind}">{mark}{abs(change):.3f}</small>'
