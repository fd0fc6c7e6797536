"""What 06 writes down of a submission: the table out of fold, log-probabilities, the manifest."""

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from src.artifacts.dataset import Dataset, own_columns
from src.artifacts.files import sha256
from src.artifacts.predictions import UNKNOWN, Predictions
from src.artifacts.work import Work, digest, git_state, versions
from src.config.schema import Config
from src.ensemble.choice import Choice
from src.ensemble.members import Member
from src.fusion.decision import Decision
from src.metrics import Gain, outcomes_of, rule_text, standard_errors, summary


def oof_table(
    members: list[Member],
    choice: Choice,
    oof: np.ndarray,
    labels: np.ndarray,
    fold: np.ndarray,
    dataset: Dataset,
    decision: Decision,
) -> pd.DataFrame:
    """Columns member, weight, the scores of `src.metrics.summary`, gain, gain_low, gain_high; the
    last row, `ensemble`, is of `oof` [N, K], cross-fitted, decisions included: each fold with what
    was fitted on the others. The gain is the combiner's over the mean, NaN where the ensemble is
    the mean. Without weights that column is NaN."""
    bins, shares = dataset.classes["bin"].to_numpy(), choice.shares
    weights = [float("nan")] * len(members) if shares is None else shares
    rows = [
        {"member": m.name, "weight": w} | summary(m.oof, labels, bins, decision.metric)
        for m, w in zip(members, weights, strict=True)
    ]
    scores = decision.summary(oof, decision.cross_fitted(oof, fold), labels, bins)
    gain = Gain() if choice.name == "mean" else choice.gain
    whole = float("nan") if shares is None else 1.0
    last = {"member": "ensemble", "weight": whole} | scores | gain.named()
    return pd.DataFrame([*rows, last])


def oof_noise(
    oof: np.ndarray, labels: np.ndarray, fold: np.ndarray, dataset: Dataset, decision: Decision
) -> dict[str, float]:
    """Standard errors of the last row's scores by bootstrap over images (src/metrics/spread.py)."""
    found = outcomes_of(oof, labels, decision.metric).decided(decision.cross_fitted(oof, fold))
    return standard_errors(found, labels, dataset.classes["bin"].to_numpy(), decision.metric)


def save_test(path: Path, test: np.ndarray, dataset: Dataset) -> None:
    """The log-probabilities behind a submission, of each test image."""
    ids = np.sort(dataset.test["image_id"].to_numpy(str))
    unknown = np.full(len(ids), UNKNOWN)
    columns = own_columns(dataset.test.set_index("image_id").loc[ids])
    Predictions(ids, test, unknown, unknown, columns=columns).save(path)


def facts_of(choice: Choice, members: list[Member], config: Config) -> dict:
    """How the members were combined, and the weight of each, null where there is none."""
    shares = choice.shares or [None] * len(members)
    return {
        "weights": {m.name: share for m, share in zip(members, shares, strict=True)},
        "method": choice.method,
        "reason": choice.reason,
        "rule": rule_text(config.judge),
        **known(choice.gain.named()),
    }


def manifest_of(
    work: Work,
    began: float,
    files: list[str],
    chosen: dict,
    table: pd.DataFrame,
    score: dict[str, float] | None,
    scored: int,
) -> dict:
    """The manifest. Submissions share a directory, so `Work.finish` cannot write it."""
    rows = table.drop(columns=["weight", *Gain().named()]).set_index("member").to_dict("index")
    metrics = {"oof": known(rows.pop("ensemble"))}
    if score is not None:
        metrics["solution"] = known(score) | {"images": scored}
    return {
        "status": "finished",
        "argv": sys.argv,
        "settings": work.settings,
        "settings_sha256": digest(work.settings),
        "git": git_state(),
        "inputs": work.inputs,
        "outputs": {name: sha256(work.directory / name) for name in files},
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
        "metrics": metrics,
        **chosen,
        "members_oof": {name: known(row) for name, row in rows.items()},
    }


def known(row: dict) -> dict:
    """The numbers of a row that are some."""
    return {k: v for k, v in row.items() if isinstance(v, float) and v == v}
