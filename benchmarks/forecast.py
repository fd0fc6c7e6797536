"""The expected leaderboard score: how often its 90 % interval holds the truth, and how wide it is.

    python benchmarks/forecast.py                      # simulate, fit, check, write the section
    python benchmarks/forecast.py --runs runs ../b/runs   # … with the submissions that are there

Simulated competitions with known truth (benchmarks/forecast_worlds.py) of every setting: source of
images, tail, prior of the test images, number of folds. What the forecast cannot measure itself is
fitted on one half of the settings, and goes to src/forecast/calibrated.json; the tables are of the
other half. One thread, minutes. What is simulated stays in runs/forecast and is not made again;
delete it where benchmarks/forecast_worlds.py has changed. Real submissions of --runs, as 06 left
them with their solution, are judged beside it, and nothing is fitted to them.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/forecast.py`

from benchmarks.forecast_worlds import competitions
from benchmarks.results import markdown, provenance, write_section
from src.artifacts.files import read_json, write_json
from src.artifacts.work import RUNS
from src.forecast.expect import CALIBRATED, CONFIDENCE, NUMBERS, Model, interval, score_at
from src.forecast.measure import TERMS, Measured, measure
from src.metrics import LABELS, PROBABILITIES, RANKING, metric_of

METRICS = {
    LABELS: ("accuracy", "balanced_accuracy", "macro_f1"),
    RANKING: ("top2", "map3"),
    PROBABILITIES: ("log_loss", "macro_auc"),
}
SHARE, TWO_SIDED = 0.9, 1.645
# by the setting's number; 0 … 4 of the first have been looked at while the forecast was made
SEEDS = (range(5, 10), range(5))
SIGNS = {  # networks and images can only help, and the less confident score less
    "ensemble": (None, 0),
    "learning curve": (0, None),
    "rare classes": (0, None),
    "confidence": (0, None),
}
Row = dict  # facts of a competition, Measured and the truth


def simulated(cache: Path) -> list[Row]:
    """A row per competition and metric."""
    rows = []
    for number, setting, seed, found in competitions(cache, SEEDS):
        facts = vars(setting) | {"learner": found.learner, "kind": found.kind}
        facts |= {"half": ("checked", "fitted")[number % 2], "competition": f"{number}/{seed}"}
        rows += [facts | judged(found, text) for texts in METRICS.values() for text in texts]
    return rows


def judged(found, text: str) -> dict:
    """What is measured for one metric, and the score that the submission got."""
    metric, e = metric_of(text), replace(found.evidence, metric=text)
    truth = metric.score(metric.outcome(e.test, found.truth), found.truth, len(e.counts))
    return {"metric": text, "of": metric.of, "measured": measure(e), "truth": truth}


def deviation(row: Row) -> float:
    """By how much log(r + ε) is above what out-of-fold images say."""
    found: Measured = row["measured"]
    regret = max(metric_of(row["metric"]).sign * (found.best - row["truth"]), 0.0)
    return float(np.log(regret + found.epsilon)) - found.center


def fit(rows: list[Row]) -> Model:
    """Maximum likelihood with the signs that terms can have; a width that holds nine in ten."""
    x = np.stack([row["measured"].terms for row in rows])
    delta = np.array([deviation(row) for row in rows])
    noise2 = np.array([row["measured"].noise ** 2 for row in rows])

    apart2 = np.array(
        [(1, m.terms[CONFIDENCE] ** 2, m.moved**2) for m in (row["measured"] for row in rows)]
    )

    def variance(theta):
        return noise2 + apart2 @ np.exp(2 * theta)

    def loss(params):
        v = variance(params[len(TERMS) :])
        return float(np.mean((delta - x @ params[: len(TERMS)]) ** 2 / v + np.log(v)))

    start = np.r_[np.zeros(len(TERMS)), [-1.5] * 3]
    found = minimize(loss, start, method="L-BFGS-B", bounds=[*SIGNS.values(), *[(-5, 2)] * 3]).x
    beta, theta = found[: len(TERMS)], found[len(TERMS) :]
    z = np.abs(delta - x @ beta) / np.sqrt(variance(theta))
    return Model(beta, *np.exp(theta).tolist(), float(np.quantile(z, SHARE)))


def check(rows: list[Row], models: dict[str, Model]) -> pd.DataFrame:
    """Of each row what the table needs: held, width, errors of the forecast and of OOF."""
    lines = []
    for row in rows:
        found, model, sign = row["measured"], models[row["of"]], metric_of(row["metric"]).sign
        low, high = interval(model, found, sign)
        plain = Model(np.zeros(len(TERMS)), 0.0, 0.0, 0.0, TWO_SIDED)
        bare = interval(plain, found, sign)
        value = score_at(model.center(found), found, sign)
        facts = {k: v for k, v in row.items() if k not in ("measured", "truth")}
        lines.append(
            facts
            | {
                "held": low <= row["truth"] <= high,
                "width": high - low,
                "error": abs(value - row["truth"]),
                "oof error": abs(found.oof - row["truth"]),
                "sampling only": bare[0] <= row["truth"] <= bare[1],
            }
        )
    return pd.DataFrame(lines)


def table(found: pd.DataFrame, by: str) -> list[dict]:
    """A row for each group of competitions."""
    return [_row({by: name}, part) for name, part in found.groupby(by, sort=False)]


def _row(names: dict, part: pd.DataFrame) -> dict:
    return names | {
        "competitions": part["competition"].nunique(),
        "truth inside, %": f"{100 * part['held'].mean():.1f}",
        "with sampling error alone, %": f"{100 * part['sampling only'].mean():.1f}",
        "width, median": float(part["width"].median()),
        "error of the forecast, median": float(part["error"].median()),
        "error of OOF, median": float(part["oof error"].median()),
    }


def keep(models: dict[str, Model], found: pd.DataFrame, path: Path) -> None:
    """calibrated.json: what was fitted, with its coverage on the other half."""
    facts = {}
    for of, model in models.items():
        part = found[found["of"] == of]
        numbers = {name: round(getattr(model, name), 4) for name in NUMBERS}
        beta = {t: round(float(b), 4) for t, b in zip(TERMS, model.beta, strict=True)}
        held = round(float(part["held"].mean()), 4)
        facts[of] = {"beta": beta, **numbers, "coverage": held}
        facts[of]["competitions"] = int(part["competition"].nunique())
    write_json(path, facts)


def across(rows: list[Row]) -> list[dict]:
    """Fitted on the images of one kind, checked on those of the other."""
    found = []
    for digits in (False, True):
        one, other = (
            [r for r in rows if (r["source"] == "digits") == d] for d in (digits, not digits)
        )
        models = {of: fit([r for r in one if r["of"] == of]) for of in METRICS}
        names = {"fitted on": "digits" if digits else "CIFAR-10"}
        names["checked on"] = "CIFAR-10" if digits else "digits"
        found.append(_row(names, check(other, models)))
    return found


def real(runs: list[Path]) -> list[dict]:
    """Submissions whose manifest has both a forecast and a score on the solution."""
    rows = []
    for path in sorted(p for root in runs for p in root.glob("*/submissions/*.manifest.json")):
        facts = read_json(path)
        told, got = facts.get("expected"), facts["metrics"].get("solution")
        if told is None or got is None or told["metric"] not in got:
            continue
        truth = got[told["metric"]]
        rows.append(
            {
                "submission": f"{path.parent.parent.name}, {' + '.join(facts['weights'])}",
                "metric": told["metric"],
                "out of fold": told["oof"],
                "expected": told["value"],
                "90 % interval": f"{told['low']:.3f} … {told['high']:.3f}",
                "solution": truth,
                "inside": "yes" if told["low"] <= truth <= told["high"] else "no",
                "images": got["images"],
            }
        )
    return rows


def body(rows: list[Row], found: pd.DataFrame, models: dict[str, Model], runs: list[Path]) -> str:
    """The section of RESULTS.md."""
    parts = [provenance(), WHAT.format(
        competitions=found["competition"].nunique(), metrics=len(found["metric"].unique()),
        fitted=len({r["competition"] for r in rows if r["half"] == "fitted"}),
    )]  # fmt: skip
    parts.append(markdown([_row({"all": "all"}, found)]))
    by = ("metric", "source", "ratio", "prior", "folds", "kind", "learner")
    parts += [markdown(table(found, name)) for name in by]
    parts += [ACROSS, markdown(across(rows)), FITTED]
    parts.append(
        markdown(
            [
                {"metrics of": of}
                | dict(zip(TERMS, m.beta.tolist(), strict=True))
                | {name: getattr(m, name) for name in NUMBERS}
                for of, m in models.items()
            ]
        )
    )
    if judged_ones := real(runs):
        parts += [REAL, markdown(judged_ones)]
    return "\n\n".join(parts)


WHAT = """The 90 % interval of the expected score on {competitions} simulated competitions with
known truth, {metrics} metrics each, of settings that nothing was fitted on; what the forecast
cannot measure was fitted on {fitted} others. Which terms it has was settled on other draws (the
first five of each setting, of these settings too), which are not in these tables. `with sampling
error alone`: the interval of out-of-fold images reweighted to the classes of the test set, with as
many test images as there are, and no other term. Errors are distances to the truth, in the
metric."""
ACROSS = "Everything fitted on the images of one kind alone, checked on those of the other:"
FITTED = """Fitted, in logarithms of the distance to a perfect score (src/forecast/expect.py);
width is in standard deviations:"""
REAL = "Real submissions, on the part of the test images whose solution is known:"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="+", default=[], metavar="DIR", help="runs of 06, to judge")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = simulated(RUNS / "forecast")
    fitted = [row for row in rows if row["half"] == "fitted"]
    models = {of: fit([row for row in fitted if row["of"] == of]) for of in METRICS}
    found = check([row for row in rows if row["half"] == "checked"], models)
    keep(models, found, CALIBRATED)
    text = body(rows, found, models, [Path(root) for root in args.runs])
    print(write_section("forecast", "Expected leaderboard score", text))


if __name__ == "__main__":
    main()
