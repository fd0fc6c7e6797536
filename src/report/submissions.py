"""The page's part on what was fitted after training: post-hoc steps and ensembles."""

import pandas as pd

from src.artifacts.files import read_table
from src.artifacts.work import checked
from src.config.tree import flatten
from src.forecast import read_forecast
from src.fusion.store import brief, load_recipe
from src.metrics import gain_text, unit
from src.plots.style import BIN_COLORS
from src.report.context import Experiment, Report
from src.report.markup import (
    cell,
    column_name,
    esc,
    facts,
    missing,
    note,
    number,
    section,
    table,
    thousands,
)
from src.report.overview import title

GAIN = ("gain", "gain_low", "gain_high")  # the last two are not in tables of earlier versions
PAIR = ("disagreement", "error_correlation", "q", "both_wrong")  # of two members
SHOWN = ("accuracy", "balanced_accuracy", *BIN_COLORS, "nll")  # of the columns of table.csv


def posthoc(report: Report) -> str:
    """Which start head and which steps 04 kept, and what each step brought."""
    parts = []
    for experiment in report.experiments:
        parts += [f"<h3>{title(experiment)}</h3>", _posthoc_of(experiment)]
    text = "Fitted on out-of-fold logits, and judged on images that the fit never saw."
    return section("posthoc", "What post-hoc kept", note(text) + "".join(parts))


def _posthoc_of(experiment: Experiment) -> str:
    if "posthoc" not in experiment.manifests:
        return missing("Nothing is calibrated.", "04_posthoc_calibrate.py")
    recipe = load_recipe(experiment.home / "posthoc")
    pairs = [("start head", f"<code>{esc(recipe['head'])}</code>")]
    pairs += [(step["step"], _params(step["params"])) for step in recipe["steps"]]
    if not recipe["steps"]:
        pairs.append(("steps", "none helped"))
    path = experiment.home / "posthoc" / "table.csv"
    rule = note(esc(recipe["rule"])) if "rule" in recipe else ""  # earlier versions have none
    steps = _steps(read_table(checked(path)), recipe) if path.is_file() else ""
    return facts(pairs, "recipe") + rule + steps


def _steps(found: pd.DataFrame, recipe: dict) -> str:
    """04's table: every head as trained, every step tried on top of those kept before it."""
    scored_by = {(t["head"], t["step"]): t.get("scored_by") for t in recipe.get("tried", ())}
    start, *others = found.columns  # the start head; with bins by halves `head` is a bin, too
    scores = [c for c in others if c in SHOWN]
    rows, kinds = [], []
    for row in found.to_dict("records"):
        step = row["step"] or "as trained"
        gain = [float(row.get(c) or "nan") for c in GAIN]
        why = row["reason"].removeprefix(f"cross-fitted gain {gain_text(*gain)}")  # that is beside
        why = f"<small>{esc(why)}</small>" if why else ""
        by = scored_by.get((row[start], row["step"]))  # recipes of earlier versions name none
        value, _, span = _signed(*gain).partition(" ")
        told = [span, unit(by) if by else ""]
        value += "".join(f"<small>{esc(part)}</small>" for part in told if part)
        rows.append([esc(row[start]), esc(step) + why, cell(row["kept"]), value])
        rows[-1] += [cell(row[c]) for c in scores]
        kinds.append("dropped" if row["kept"] == "no" else "final" if step == "final" else "")
    head = ["start", "step", "kept", "gain", *map(column_name, scores)]
    return table(head, rows, "steps", kinds)


def _params(params: dict) -> str:
    """Parameters of a step, long lists cut."""
    shown = []
    for key, value in flatten(brief(params)).items():
        if isinstance(value, list) and len(value) > 6:
            value = f"{len(value)} numbers"
        shown.append(f"{esc(key)} = {cell(value)}" if key else cell(value))
    return "<br>".join(shown) or "–"


def ensemble(report: Report) -> str:
    """Weights and score of every submission made from these experiments."""
    parts = [
        f"<h3>{esc(name)}</h3>{_submission(manifest)}"
        for name, manifest in report.submissions.items()
    ]
    nothing = missing("No submission is made from these experiments.", "06_ensemble.py")
    text = (
        "Each submission that is made of these experiments: its members out of fold, what they are "
        "together, and what the leaderboard may say."
    )
    return section("ensemble", "Ensemble and submission", note(text) + ("".join(parts) or nothing))


def _submission(manifest: dict) -> str:
    """Members with weights (where the combiner has any) and scores, and what they are together."""
    together, weights = manifest["metrics"]["oof"], manifest["weights"]
    scores = [c for c in (*SHOWN, "ece") if c in together]
    rows, kinds = [], []
    for member, weight in weights.items():
        found = manifest["members_oof"][member]
        shown = [cell(found.get(c, "")) for c in scores]
        share = "–" if weight is None else f"{number(weight)}{_bar(weight)}"
        rows.append([esc(member), share, *shown])
        kinds.append("dropped" if weight == 0 else "")
    rows.append(["together, out of fold", "", *[cell(together[c]) for c in scores]])
    kinds.append("final")
    solution = manifest["metrics"].get("solution")
    if solution:
        images = f"submission, {thousands(solution['images'])} test images"
        rows.append([images, "", *[cell(solution.get(c, "")) for c in scores]])
        kinds.append("final")
    text = f"{esc(manifest['method'])}: {esc(manifest['reason'])}."
    text += f" {esc(manifest['rule'])}" if "rule" in manifest else ""
    if "decision" in manifest:  # older ones have none
        text += f" {esc(manifest['decision']['says'])}."
    members = table(["member", "weight", *map(column_name, scores)], rows, "", kinds)
    return note(text) + members + _expected(manifest) + _review(manifest)


def _expected(manifest: dict) -> str:
    """What the submission can expect, and what it got; earlier versions wrote nothing of it."""
    if "expected" not in manifest:
        return ""
    told = read_forecast(manifest["expected"])
    lines = told.lines()
    solution = manifest["metrics"].get("solution", {})
    if (got := solution.get(told.metric)) is not None:
        inside = "inside" if told.low <= got <= told.high else "outside"
        images = thousands(solution["images"])
        lines.append(f"on the {images} images of the solution: {got:.3f}, {inside} that interval")
    return "".join(note(esc(line[0].upper() + line[1:] + ".")) for line in lines)


def _review(manifest: dict) -> str:
    """What each member brings, and how alike they are; earlier versions wrote nothing of it."""
    parts = []
    if best := manifest.get("best_member"):
        parts.append(note(esc(best["says"])))
    if dropped := manifest.get("drop_one"):
        rows = [
            [esc(row["without"]), cell(row["score"]), _signed(*(row[name] for name in GAIN))]
            for row in dropped
        ]
        parts.append(table(["without", "score", "it brings"], rows, ""))
    if pairs := manifest.get("diversity"):
        rows = [
            [esc(p["a"]), esc(p["b"]), *("–" if p[c] is None else cell(p[c]) for c in PAIR)]
            for p in pairs
        ]
        parts.append(table(["member", "and", *(c.replace("_", " ") for c in PAIR)], rows, ""))
    return "".join(parts)


def _signed(gain: float, low: float, high: float) -> str:
    return gain_text(gain, low, high).replace("-", "−") or "–"


def _bar(weight: float) -> str:
    inside = f'<i style="width:{100 * float(weight):.1f}%"></i>'
    return f'<span class="bar" style="--c:var(--accent)">{inside}</span>'
