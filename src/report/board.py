"""The page's leaderboard: experiments and submissions with their intervals, test score and cost.

Experiments of the dataset that are not part of this report have the score that 04 wrote down, and
no interval: their predictions are not read again.
"""

from dataclasses import dataclass
from math import isnan

from src.artifacts.files import read_json
from src.artifacts.work import MANIFEST
from src.forecast import read_forecast
from src.metrics import NORMAL, short_name, sign
from src.report.context import Experiment, Report, manifest_files
from src.report.markup import esc, interval, note, number, section, table, thousands
from src.report.overview import title

SAME = 1e-9  # difference of one score, computed twice


@dataclass(frozen=True)
class Row:
    """name: HTML · score: out of fold, by the competition's metric · noise: its standard error ·
    test: on the solution · low, high: of the expected test score, 90 % · cost: core minutes"""

    name: str
    score: float
    noise: float = float("nan")
    test: float = float("nan")
    expected: tuple[float, float] | None = None
    cost: float = float("nan")
    kind: str = ""


def leaderboard(report: Report) -> str:
    """All rows, the best out of fold first."""
    if not report.experiments:
        return ""
    metric = report.experiments[0].config.metric
    rows = [_of_experiment(e, metric) for e in report.experiments if not isnan(e.score(metric))
            and not any(_same(e, m, metric) for m in report.submissions.values())]  # fmt: skip
    rows += [_of_submission(name, m, report) for name, m in report.submissions.items()
             if m["settings"]["metric"] == metric]  # fmt: skip
    rows += _others(report, metric)
    rows = sorted(rows, key=lambda row: -sign(metric) * row.score)
    if not rows:
        return ""
    return section("leaderboard", "Leaderboard", note(_words(metric)) + _table(rows))


def _words(metric: str) -> str:
    less = "" if sign(metric) > 0 else " (less is better)"
    return (
        f"By {esc(short_name(metric).replace('_', ' '))}{less}, out of fold, with the 95 % "
        "interval of chance in the images (bootstrap), drawn on the scale that the heading names. "
        "Expected is what 06 foresees on the test images, with its 90 % interval. Cost is core "
        "minutes of everything the row rests on, as the manifests have it (those of earlier "
        "versions: minutes on the clock)."
    )


def _table(rows: list[Row]) -> str:
    ends = [x for row in rows for x in _ends(row) if x == x]
    span = (min(ends), max(ends))
    seen = [any(cells) for cells in zip(*((r.test == r.test, bool(r.expected)) for r in rows),
                                        strict=True)]  # fmt: skip
    scale = f"95 %<small>{number(span[0])} … {number(span[1])}</small>"
    head = ["", "out of fold", scale, *(["test"] if seen[0] else []),
            *(["expected, 90 %"] if seen[1] else []), "core minutes"]  # fmt: skip
    body = []
    for row in rows:
        low, high = _ends(row)
        cells = [row.name, f"<b>{number(row.score)}</b>", interval(row.score, low, high, span)]
        cells += [number(row.test)] if seen[0] else []
        told = row.expected and f"{row.expected[0]:.3f} – {row.expected[1]:.3f}"
        cells += [told or "–"] if seen[1] else []
        body.append([*cells, _spent(row.cost)])
    return table(head, body, "board", [row.kind for row in rows])


def _spent(cost: float) -> str:
    """Core minutes, marked as a time: all else on the page is the same when it is made again."""
    if cost != cost:
        return "–"
    return f'<time datetime="PT{60 * cost:.0f}S">{thousands(round(cost, 1))}</time>'


def _ends(row: Row) -> tuple[float, float]:
    """Of the interval; twice the score where it is not known."""
    half = NORMAL * row.noise if row.noise == row.noise else 0.0
    return row.score - half, row.score + half


def _of_experiment(e: Experiment, metric: str) -> Row:
    stage = list(e.stages.values())[-1]
    name = f"{title(e)}<small>{esc(list(e.stages)[-1])}</small>"
    cost = minutes(e.manifests.values())
    return Row(name, stage.scores[metric], stage.noise.get(metric, float("nan")), cost=cost)


def _same(e: Experiment, manifest: dict, metric: str) -> bool:
    """Whether a submission is of this experiment alone, as it is: one row is enough."""
    alone = list(manifest["settings"]["members"]) == [e.name]
    score = manifest["metrics"]["oof"].get(metric, float("nan"))
    return alone and abs(score - e.score(metric)) < SAME


def _of_submission(name: str, manifest: dict, report: Report) -> Row:
    metric = manifest["settings"]["metric"]
    told = read_forecast(manifest["expected"]) if "expected" in manifest else None
    parts = [_manifests(report, member) for member in manifest["settings"]["members"]]
    known = all(parts)  # members may have been removed since
    cost = minutes([m for part in parts for m in part] + [manifest]) if known else float("nan")
    test = manifest["metrics"].get("solution", {}).get(metric, float("nan"))
    noise = manifest.get("noise", {}).get(metric, float("nan"))
    span = told and (told.low, told.high)
    members = list(manifest["settings"]["members"])
    of = f"{len(parts)} experiments" if len(parts) > 1 else f"of {esc(members[0])}"
    badges = [title(e) for e in report.experiments if members == [e.name] == [name]]
    shown = f"{(badges or [esc(name)])[0]}<small>submission, {of}</small>"
    return Row(shown, manifest["metrics"]["oof"][metric], noise, test, span, cost, "final")


def _others(report: Report, metric: str) -> list[Row]:
    """Experiments of the dataset that 04 has finished and that are not shown here."""
    shown, rows = {e.name for e in report.experiments}, []
    for path in sorted(report.data.directory.parent.glob(f"*/posthoc/{MANIFEST}")):
        name, recipe = path.parents[1].name, path.with_name("posthoc.json")
        if name in shown or not recipe.is_file():
            continue
        told = read_json(recipe)
        score = told.get("scores", {}).get("after")
        if told.get("metric") == metric and isinstance(score, float):
            label = f"{esc(name)}<small>not in this report</small>"
            rows.append(Row(label, score, cost=minutes(_manifests(report, name)), kind="dropped"))
    return rows


def _manifests(report: Report, experiment: str) -> list[dict]:
    own = [e for e in report.experiments if e.name == experiment]
    if own:
        return list(own[0].manifests.values())
    return [read_json(path) for path in manifest_files(report.data.directory.parent / experiment)]


def minutes(manifests) -> float:
    """Core minutes of finished work: CPU seconds where they were measured, else wall seconds."""
    return sum(m.get("cpu_seconds", m.get("seconds", 0)) for m in manifests) / 60
