"""04 in sentences: what each head gained, what is not for which head, and what is chosen.

The numbers behind them are in table.csv, search.csv and posthoc.json.
"""

import pandas as pd

from src.fusion.store import brief
from src.metrics import unit
from src.posthoc.crossfit import Trial


def head_in_words(name: str, before: float, after: float, trials: list[Trial], metric: str) -> str:
    """`crt: balanced 0.421 → 0.504; kept ncm_fusion, +0.082 …`. before, after: cross-fitted"""
    judged = [t for t in trials if t.scored_by]
    kept = [f"{t.step}, {t.gain} {unit(t.scored_by)}" for t in judged if t.kept]
    dropped = [t.step for t in judged if not t.kept]
    scores = dict.fromkeys(f"{score:.3f}" for score in (before, after))
    parts = [f"{name}: {unit(metric)} {' → '.join(scores)}"]
    parts += [f"kept {'; '.join(kept)}"] if kept else []
    parts += [f"no gain beyond chance by {', '.join(dropped)}"] if dropped else []
    return "; ".join(parts)


def refusals_in_words(trials: dict[str, list[Trial]]) -> list[str]:
    """A line for each step and reason why it was not tried, with the heads that it holds for."""
    heads: dict[tuple[str, str], list[str]] = {}
    for name, tried in trials.items():
        for trial in tried:
            if not trial.scored_by:
                heads.setdefault((trial.step, trial.reason), []).append(name)
    return [f"{step}: not for {', '.join(of)}: {why}" for (step, why), of in heads.items()]


def ends(table: pd.DataFrame) -> pd.DataFrame:
    """04's table, of which each head's last row that is kept remains; `head` names the steps."""
    rows, found = table[(table["step"] != "final") & (table["kept"] != "no")], {}
    for start, own in rows.groupby("start", sort=False):
        found[" + ".join([start, *own["step"][1:]])] = own.iloc[-1]
    return pd.DataFrame(found.values(), index=pd.Index(found, name="head")).reset_index()


def choice_in_words(recipe: dict) -> str:
    """`final: crt with ncm fused in (weight 0.65), temperature (T = 2.88): balanced …`.

    recipe: posthoc.json
    """
    steps = [_step(step["step"], step["params"]) for step in recipe["steps"]]
    scores, metric = recipe["scores"], unit(recipe["metric"])
    what = " ".join([f"final: {recipe['head']}", *(["with " + ", ".join(steps)] if steps else [])])
    alone = f", stage1 alone {scores['stage1']:.3f}" if what != "final: stage1" else ""
    return f"{what}: {metric} {scores['after']:.3f}{alone}, cross-fitted"


def _step(name: str, params: dict) -> str:
    shown = {k: v for k, v in brief(params).items() if isinstance(v, float)}
    head = params.get("head")
    if head and "w" in shown:  # of the start head
        return f"{head} fused in (weight {1 - shown['w']:.2g})"
    more = ", ".join(f"{key} = {value:.3g}" for key, value in shown.items())
    return (f"{head} beside it by {name}" if head else name) + (f" ({more})" if more else "")
