"""The page's part on what was fitted after training: post-hoc steps and ensembles."""

from src.artifacts import read_json, read_table
from src.config import flatten
from src.report.context import Experiment, Report
from src.report.markup import esc, facts, missing, note, number, section, table
from src.report.overview import title


def posthoc(report: Report) -> str:
    """Which start head and which steps 04 kept, and what each step brought."""
    parts = []
    for experiment in report.experiments:
        parts += [f"<h3>{title(experiment)}</h3>", _posthoc_of(experiment)]
    text = "Fitted on out-of-fold logits; a step stays only where its cross-fitted gain is real."
    return section("posthoc", "What post-hoc kept", note(text) + "".join(parts))


def _posthoc_of(experiment: Experiment) -> str:
    if "posthoc" not in experiment.manifests:
        return missing("Nothing is calibrated.", "04_posthoc_calibrate.py")
    directory = experiment.home / "posthoc"
    recipe = read_json(directory / "posthoc.json")
    pairs = [("start head", f"<code>{esc(recipe.get('head', '–'))}</code>")]
    for step in recipe.get("steps", []):
        pairs.append((str(step.get("step", "step")), _params(step.get("params", {}))))
    if not recipe.get("steps"):
        pairs.append(("steps", "none helped"))
    body = facts(pairs)
    if (directory / "table.csv").is_file():
        found = read_table(directory / "table.csv")
        rows = [[_cell(value) for value in row] for row in found.itertuples(index=False)]
        body += table([esc(c.replace("_", " ")) for c in found.columns], rows)
    return body


def _params(params: dict) -> str:
    """Parameters of a step, long lists cut."""
    shown = []
    for key, value in flatten(params).items():
        if isinstance(value, list) and len(value) > 6:
            value = f"{len(value)} numbers"
        shown.append(f"{esc(key)} = {_cell(value)}" if key else _cell(value))
    return "<br>".join(shown) or "–"


def _cell(value) -> str:
    """Three decimals for fractions, everything else as it stands."""
    text = str(value)
    try:
        plain = text.lstrip("+-").isdigit()
        return esc(text) if plain else esc(number(float(text))).replace("-", "−")
    except ValueError:
        return esc(text or "–")


def ensemble(report: Report) -> str:
    """Weights and score of every submission made from these experiments."""
    names = {experiment.name for experiment in report.experiments}
    parts = [
        f"<h3>{esc(name)}</h3>{_submission(manifest)}"
        for name, manifest in report.submissions.items()
        if names & mentioned(manifest)
    ]
    nothing = missing("No submission is made from these experiments.", "06_ensemble.py")
    return section("ensemble", "Ensemble and submission", "".join(parts) or nothing)


def mentioned(manifest: dict) -> set[str]:
    """Every name in a submission's settings, inputs and weights, split at slashes."""
    texts = [*manifest.get("inputs", {}), *manifest.get("weights", {})]
    for key, value in flatten(manifest.get("settings", {})).items():
        values = value if isinstance(value, list) else [value]
        texts += [key, *(v for v in values if isinstance(v, str))]
    return {part for text in texts for part in text.split("/")}


def _submission(manifest: dict) -> str:
    scores = flatten(manifest.get("metrics", {}))
    pairs = [(k.replace("_", " ").replace(".", " · "), _cell(v)) for k, v in scores.items() if k]
    weights = manifest.get("weights", {})
    rows = [[esc(member), f"{_cell(weight)}{_bar(weight)}"] for member, weight in weights.items()]
    return (facts(pairs) if pairs else "") + (table(["member", "weight"], rows) if rows else "")


def _bar(weight: float) -> str:
    inside = f'<i style="width:{100 * float(weight):.1f}%"></i>'
    return f'<span class="bar" style="--c:var(--accent)">{inside}</span>'
