"""The expected leaderboard score: how often its 90 % interval holds the truth, and how wide it is.

    python benchmarks/forecast.py                 # simulate, fit, check, write the section
    python benchmarks/forecast.py --birds RUNS    # also on a run of birds_lt, runs/<dataset>

Simulated competitions with known truth (benchmarks/forecast_worlds.py) of every setting: source of
images, tail, prior of the test images, number of folds. What the forecast cannot measure itself is
fitted on one half of the settings, and goes to src/forecast/calibrated.json; the tables are of the
other half. One thread, minutes. Sources and simulated predictions are kept in runs/forecast.
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

from benchmarks.forecast_worlds import compete, load_sources, settings
from benchmarks.results import RESULTS, markdown, provenance, write_section
from src.artifacts.files import write_json
from src.artifacts.work import RUNS
from src.forecast.forecast import CALIBRATED, CONFIDENCE, NUMBERS, Model, interval, score_at
from src.forecast.measure import TERMS, Measured, measure
from src.metrics import LABELS, PROBABILITIES, RANKING, metric_of

METRICS = {
    LABELS: ("accuracy", "balanced_accuracy", "macro_f1"),
    RANKING: ("top2", "map3"),
    PROBABILITIES: ("log_loss", "macro_auc"),
}
PER_SETTING, SHARE, TWO_SIDED = 5, 0.9, 1.645
Row = dict  # facts of a competition, Measured and the truth


def simulate(cache: Path, per_setting: int = PER_SETTING) -> list[Row]:
    """A row per competition and metric."""
    sources, rows = load_sources(cache), []
    for number, setting in enumerate(settings()):
        for seed in range(per_setting):
            found = compete(setting, sources, seed)
            facts = vars(setting) | {"learner": found.learner, "kind": found.kind}
            facts |= {"half": HALVES[number % 2], "competition": f"{number}/{seed}"}
            rows += [facts | judged(found, text) for texts in METRICS.values() for text in texts]
    return rows


HALVES = ("checked", "fitted")


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
    """Maximum likelihood, then the width that holds nine in ten."""
    x = np.stack([row["measured"].terms for row in rows])
    delta = np.array([deviation(row) for row in rows])
    noise2 = np.array([row["measured"].noise ** 2 for row in rows])

    def variance(theta):
        return noise2 + np.exp(2 * theta[0]) + np.exp(2 * theta[1]) * x[:, CONFIDENCE] ** 2

    def loss(params):
        v = variance(params[len(TERMS) :])
        return float(np.mean((delta - x @ params[: len(TERMS)]) ** 2 / v + np.log(v)))

    found = minimize(loss, np.r_[np.zeros(len(TERMS)), -1.5, -1.5], method="L-BFGS-B").x
    beta, theta = found[: len(TERMS)], found[len(TERMS) :]
    z = np.abs(delta - x @ beta) / np.sqrt(variance(theta))
    return Model(beta, *np.exp(theta).tolist(), float(np.quantile(z, SHARE)))


def check(rows: list[Row], models: dict[str, Model]) -> pd.DataFrame:
    """Of each row what the table needs: held, width, errors of the forecast and of OOF."""
    lines = []
    for row in rows:
        found, model, sign = row["measured"], models[row["of"]], metric_of(row["metric"]).sign
        low, high = interval(model, found, sign)
        plain = Model(np.zeros(len(TERMS)), 0.0, 0.0, TWO_SIDED)
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
    rows = []
    for name, part in [*found.groupby(by, sort=False), ("all", found)][: None if by else 1]:
        rows.append(
            {
                by: name,
                "competitions": part["competition"].nunique(),
                "truth inside, %": round(100 * part["held"].mean(), 1),
                "sampling error alone, %": round(100 * part["sampling only"].mean(), 1),
                "width": float(part["width"].median()),
                "error of the forecast": float(part["error"].median()),
                "error of OOF": float(part["oof error"].median()),
            }
        )
    return rows


if __name__ == "__main__":
    pass
