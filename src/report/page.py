"""`runs/<dataset>/report.html`: one file, no requests, the same bytes for the same runs."""

from pathlib import Path

from src.artifacts.files import write_text
from src.artifacts.lock import locked
from src.report import diagnosis, overview, provenance, results, submissions
from src.report.context import Report
from src.report.evidence import evidence
from src.report.markup import document, esc
from src.report.searches import searches

SECTIONS = (
    ("evidence", "What it looked at", evidence),
    ("distribution", "Distribution", overview.distribution),
    ("search", "Searched settings", searches),
    ("curves", "Learning curves", results.curves),
    ("stages", "Stage by stage", results.stages),
    ("posthoc", "Post-hoc", submissions.posthoc),
    ("ensemble", "Ensemble", submissions.ensemble),
    ("reliability", "Reliability", diagnosis.reliability),
    ("confusions", "Confusions", diagnosis.confusions),
    ("duplicates", "Duplicates", overview.duplicates),
    ("provenance", "Provenance", provenance.provenance),
)


def write_report(report: Report) -> Path:
    """Write the page for what `gather` read, with whatever stages have run."""
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
