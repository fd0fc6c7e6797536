"""The page's end: configs, code versions and seconds, so that a run can be repeated."""

import yaml

from src.config.tree import dump_config
from src.report.context import Experiment, Report
from src.report.markup import details, duration, esc, note, section, table
from src.report.overview import title


def provenance(report: Report) -> str:
    """Where every number comes from."""
    rows = [["folds", *_row(report.manifest)]]
    for experiment in report.experiments:
        for name, manifest in experiment.manifests.items():
            rows.append([f"{esc(experiment.name)}/{esc(name)}", *_row(manifest)])
    for name, manifest in report.submissions.items():
        rows.append([f"submissions/{esc(name)}", *_row(manifest)])
    seconds = sum(m.get("seconds", 0) for m in _manifests(report))
    head = ["directory", "commit", "device", "time"]
    body = note(
        f"What the numbers above rest on: {len(rows)} finished steps, {duration(seconds)} of work "
        "in all (on the clock), with the code, the versions and the settings of each."
    )
    body += details("Every step", table(head, rows, "text"))
    body += details("Versions", _versions(report))
    body += "".join(_config(experiment) for experiment in report.experiments)
    return section("provenance", "Provenance", body)


def _manifests(report: Report) -> list[dict]:
    inner = [m for e in report.experiments for m in e.manifests.values()]
    return [report.manifest, *inner, *report.submissions.values()]


def _row(manifest: dict) -> list[str]:
    where = manifest.get("device") or manifest.get("machine", "–")
    seconds = manifest.get("seconds")
    return [
        f"<code>{esc(manifest.get('git', 'unknown'))}</code>",
        esc(where),
        "–" if seconds is None else duration(seconds),
    ]


def _versions(report: Report) -> str:
    """Each package with the version that was used; several when steps differ."""
    found: dict[str, set[str]] = {}
    for manifest in _manifests(report):
        for package, version in manifest.get("versions", {}).items():
            found.setdefault(package, set()).add(version)
    rows = [[esc(name), esc(", ".join(sorted(v)))] for name, v in sorted(found.items())]
    return table(["package", "version"], rows, "text")


def _config(experiment: Experiment) -> str:
    text = yaml.safe_dump(dump_config(experiment.config), sort_keys=False, allow_unicode=True)
    return details(f"Config of {title(experiment)}", f"<pre>{esc(text)}</pre>")
