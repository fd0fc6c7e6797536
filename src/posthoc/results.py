"""What 04 writes down: the table of steps, the log of the search, and posthoc.json."""

import math
from pathlib import Path

import pandas as pd

from src.artifacts.files import read_table
from src.config.schema import Config
from src.fusion.store import told
from src.metrics import rule_text
from src.posthoc.crossfit import Recipe, Recipes, Trial

TEXT = ("start", "step", "kept", "params", "reason")
GAIN = ["gain", "gain_low", "gain_high"]  # and its 95 % interval
FIRST = ["start", "step", "kept", *GAIN]


def trial_row(head: str, trial: Trial, scores: dict[str, float]) -> dict:
    """A row of table.csv."""
    params = trial.choices.get(None)
    return {
        "start": head,
        "step": trial.step,
        "kept": "yes" if trial.kept else "no",
        **trial.gain.named(),
        **scores,
        "params": "" if params is None else told(params),
        "reason": trial.reason,
    }


def table_of(rows: list[dict]) -> pd.DataFrame:
    """table.csv: one row per head, step and the final result; empty where nothing was measured."""
    table = pd.DataFrame(rows)
    for column in ("kept", "params", "reason"):
        table[column] = table[column].fillna("") if column in table else ""
    for column in GAIN:
        table[column] = table[column] if column in table else float("nan")
    scores = [c for c in table if c not in (*FIRST, "params", "reason")]
    return table[[*FIRST, *scores, "params", "reason"]]


def load_table(path: Path) -> pd.DataFrame:
    columns = read_table(path).columns
    return read_table(path, [c for c in columns if c not in TEXT])


def search_log(head: str, trial: Trial) -> list[dict]:
    """Rows of search.csv: every candidate on all out-of-fold images, on which it was chosen, and
    the cross-fitted score with the parameters of each fold. Empty params: without the step."""
    rows = [
        {"params": "" if params is None else told(params), "score": score, "cross_fitted": "no"}
        for params, score in trial.searched
    ]
    if trial.choices:
        per_fold = {str(k): p for k, p in trial.choices.items() if k is not None}
        judged = {"params": told(per_fold), "score": trial.after, "cross_fitted": "yes"}
        rows.append(judged | trial.gain.named())
    common = {"start": head, "step": trial.step, "scored_by": trial.scored_by}
    return [common | row for row in rows]


def facts(
    head: str,
    recipes: Recipes,
    tried: list[tuple[str, Trial]],
    table: pd.DataFrame,
    config: Config,
    reasons: list[str],
) -> dict:
    """posthoc.json, as `src.fusion.store.save_recipe` takes it. `head` and `steps` are the recipe
    that `src.fusion.apply_recipe` applies.

    reasons: why out-of-fold scores are optimistic, if they are
    """
    metric = config.metric
    plain = table[table["step"] == ""].set_index("start")[metric]
    return {
        "head": head,
        "steps": _steps(recipes[None]),
        "metric": metric,
        "rule": rule_text(config.judge),
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
                **numbers({"before": trial.before, "after": trial.after} | trial.gain.named()),
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
