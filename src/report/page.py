"""`runs/<dataset>/report.html`: one file, no requests, the same bytes for the same runs."""

from pathlib import Path

from src.artifacts.files import write_table, write_text
from src.artifacts.lock import locked
from src.report import diagnosis, overview, provenance, results, submissions
from src.report.board import leaderboard
from src.report.classes import classes
from src.report.context import SUSPECTS, Report
from src.report.evidence import evidence
from src.report.held import transfer
from src.report.markup import document, esc
from src.report.review import review
from src.report.scenes import scenes
from src.report.searches import searches

SECTIONS = (
    ("leaderboard", "Leaderboard", leaderboard),
    ("evidence", "What it looked at", evidence),
    ("distribution", "Distribution", overview.distribution),
    ("search", "Searched settings", searches),
    ("curves", "Learning curves", results.curves),
    ("stages", "Stage by stage", results.stages),
    ("posthoc", "Post-hoc", submissions.posthoc),
    ("ensemble", "Ensemble", submissions.ensemble),
    ("transfer", "Held on test?", transfer),
    ("reliability", "Reliability", diagnosis.reliability),
    ("confusions", "Confusions", diagnosis.confusions),
    ("classes", "Classes", classes),
    ("review", "Labels to look at", review),
    ("duplicates", "Duplicates", overview.duplicates),
    ("scenes", "Scenes", scenes),
    ("provenance", "Provenance", provenance.provenance),
)


def write_report(report: Report) -> Path:
    """Write the page for what `gather` read, with whatever stages have run, and the table of
    suspects beside each experiment."""
    for experiment in report.experiments:
        if experiment.stages:
            write_table(experiment.home / SUSPECTS, experiment.suspects)
    path = report.data.directory.parent / "report.html"
    page = document(f"{report.name} · report", _body(report))
    with locked(path):
        return write_text(path, page)


def _body(report: Report) -> str:
    drawn = [(anchor, title, draw(report)) for anchor, title, draw in SECTIONS]
    drawn = [part for part in drawn if part[2]]
    links = "".join(f'<a href="#{anchor}">{esc(title)}</a>' for anchor, title, _ in drawn)
    sections = "\n".join(section for _, _, section in drawn)
    return f"{overview.header(report)}\n<nav>{links}</nav>\n{sections}"
