"""What 04 writes down: the table of steps, the log of the search, and posthoc.json."""

import json
import math
from pathlib import Path

import pandas as pd

from src.artifacts.files import read_table
from src.posthoc.crossfit import Recipe, Recipes, Trial

TEXT = ("start", "step", "kept", "params", "reason")
FIRST = ["start", "step", "kept", "gain"]


def trial_row(head: str, trial: Trial, scores: dict[str, float]) -> dict:
    """A row of table.csv."""
    params = trial.choices.get(None)
    return {
        "start": head,
        "step": trial.step,
        "kept": "yes" if trial.kept else "no",
        "gain": trial.gain,
        **scores,
        "params": "" if params is None else json.dumps(params),
        "reason": trial.reason,
    }


def table_of(rows: list[dict]) -> pd.DataFrame:
    """table.csv: one row per head, step and the final result; empty where nothing was measured."""
    table = pd.DataFrame(rows)
    for column in ("kept", "params", "reason"):
        table[column] = table[column].fillna("") if column in table else ""
    if "gain" not in table:
        table["gain"] = float("nan")
    scores = [c for c in table if c not in (*FIRST, "params", "reason")]
    return table[[*FIRST, *scores, "params", "reason"]]


def load_table(path: Path) -> pd.DataFrame:
    columns = read_table(path).columns
    return read_table(path, [c for c in columns if c not in TEXT])


def search_log(head: str, trial: Trial) -> list[dict]:
    """Rows of search.csv: every candidate on all out-of-fold images, on which it was chosen, and
    the cross-fitted score with the parameters of each fold. Empty params: without the step."""
    rows = [
        {"params": "" if params is None else json.dumps(params), "score": score, "fitted": "no"}
        for params, score in trial.searched
    ]
    if trial.choices:
        per_fold = {str(k): p for k, p in trial.choices.items() if k is not None}
        rows.append({"params": json.dumps(per_fold), "score": trial.after, "fitted": "yes"})
    common = {"start": head, "step": trial.step, "scored_by": trial.scored_by}
    return [
        common | {"params": r["params"], "score": r["score"], "cross_fitted": r["fitted"]}
        for r in rows
    ]


def facts(
    head: str,
    recipes: Recipes,
    tried: list[tuple[str, Trial]],
    table: pd.DataFrame,
    metric: str,
    reasons: list[str],
) -> dict:
    """posthoc.json. `head` and `steps` are the recipe that `src.fusion.apply_recipe` applies.

    reasons: why out-of-fold scores are optimistic, if they are
    """
    plain = table[table["step"] == ""].set_index("start")[metric]
    return {
        "head": head,
        "steps": _steps(recipes[None]),
        "metric": metric,
        "scores": {
            "stage1": plain["stage1"],
            "before": plain[head],
            "after": table[metric].iloc[-1],
        },
        "optimistic": " ".join(reasons) or None,
        "per_fold": {str(k): _steps(r) for k, r in recipes.items() if k is not None},
        "tried": [
            {
                "head": name,
                "step": trial.step,
                "kept": trial.kept,
                "reason": trial.reason,
                "scored_by": trial.scored_by,
                **numbers({"before": trial.before, "after": trial.after, "gain": trial.gain}),
                "params": trial.choices.get(None),
                "per_fold": {str(k): p for k, p in trial.choices.items() if k is not None},
            }
            for name, trial in tried
        ],
    }


def numbers(scores: dict[str, float]) -> dict[str, float | None]:
    """NaN is no JSON: null instead."""
    return {name: None if math.isnan(value) else value for name, value in scores.items()}


def _steps(recipe: Recipe) -> list[dict]:
    return [{"step": name, "params": params} for name, params in recipe]
