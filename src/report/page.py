"""`runs/<dataset>/report.html`: one file, no requests, the same bytes for the same runs."""

from pathlib import Path

from src.artifacts.files import write_text
from src.artifacts.lock import locked
from src.config.schema import Config
from src.report import diagnosis, overview, provenance, results, submissions
from src.report.context import Report, gather
from src.report.markup import document, esc
from src.report.searches import searches

SECTIONS = (
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


def write_report(dataset: str, experiments: list[str], configs: list[Config]) -> Path:
    """Write the page for experiments of one dataset, with whatever stages have run.

    configs: one per experiment. Errors: UserError when 01 has not finished.
    """
    report = gather(dataset, experiments, configs)
    path = report.data.directory.parent / "report.html"
    page = document(f"{dataset} · report", _body(report))
    with locked(path):
        return write_text(path, page)


def _body(report: Report) -> str:
    drawn = [(anchor, title, draw(report)) for anchor, title, draw in SECTIONS]
    drawn = [part for part in drawn if part[2]]
    links = "".join(f'<a href="#{anchor}">{esc(title)}</a>' for anchor, title, _ in drawn)
    sections = "\n".join(section for _, _, section in drawn)
    return f"{overview.header(report)}\n<nav>{links}</nav>\n{sections}"
