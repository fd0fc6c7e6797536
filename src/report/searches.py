"""The page's part on what `--search` tried and found."""

from pathlib import Path

from src.artifacts.files import read_json, read_table
from src.artifacts.work import MANIFEST, checked
from src.config.search import Range
from src.plots.history import history_panels
from src.plots.style import svg
from src.report.context import Experiment, Report
from src.report.markup import esc, note, panels, section
from src.report.overview import title
from src.search.winner import BEST as WINNER
from src.search.winner import found_text, read_best


def searches(report: Report) -> str:
    """What each search tried and found; empty where nothing was searched."""
    parts = [_searches_of(experiment) for experiment in report.experiments]
    if not any(parts):
        return ""
    text = (
        "Scores are those that settings were chosen by: of stage 1 on a part of one fold's "
        "training images, of heads on the held-out images of all folds but one."
    )
    return section("search", "Searched settings", note(text) + "".join(parts))


def _searches_of(experiment: Experiment) -> str:
    found = [experiment.home / "search", *sorted(experiment.home.glob("stage2/*/search"))]
    parts = [_one(experiment, path) for path in found if (path / MANIFEST).is_file()]
    return f"<h3>{title(experiment)}</h3>" + "".join(parts) if parts else ""


def _one(experiment: Experiment, directory: Path) -> str:
    """The winner in words, and the panels of history.png."""
    keys = read_json(directory / MANIFEST, {"settings/search/keys": dict})["settings"]["search"][
        "keys"
    ]
    ranges = {key: Range.model_validate(span) for key, span in keys.items()}
    numbers = [key for key, span in ranges.items() if span.choices is None]
    trials = read_table(checked(directory / "trials.csv"), ("trial", "score", *numbers))
    best, name = read_best(directory / WINNER), directory.relative_to(experiment.home)
    drawn = [
        svg(panel, f"{esc(experiment.name)}: {esc(name)}, {esc(what)}")
        for what, panel in history_panels(trials, ranges, best["metric"]).items()
    ]
    return note(f"<code>{esc(name)}</code>: {esc(found_text(best))}") + panels(drawn)
