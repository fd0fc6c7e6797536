"""Stage 6: the logits of many heads and experiments → one submission."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from src.artifacts.dataset import Dataset, load_dataset
from src.artifacts.files import read_json, sha256, write_bytes, write_json, write_table
from src.artifacts.predictions import UNKNOWN, Predictions
from src.artifacts.work import RUNS, Work, digest, git_state, versions
from src.config.schema import Config
from src.ensemble.members import Member, average, load_members
from src.ensemble.submission import (
    check_submission,
    find_solution,
    score_solution,
    submission_table,
)
from src.ensemble.weights import Weights, choose
from src.errors import UserError
from src.metrics import summary

LONGEST = 120  # letters of a submission's name


@dataclass(frozen=True)
class Result:
    """submission: the file · oof: a row per member and the ensemble, with weights and cross-fitted
    scores · weights: how they were chosen · score: on the solution, where there is one · scored:
    how many of `images` test images that is"""

    submission: Path
    oof: pd.DataFrame
    weights: Weights
    score: dict[str, float] | None
    scored: int
    images: int


def ensemble(
    configs: list[Config],
    experiments: list[str],
    *,
    overwrite: bool = False,
    out: str | Path | None = None,
    solution: str | Path | None = None,
) -> Result:
    """Weigh the members, write runs/<dataset>/submissions/<name>.csv, .npz and .manifest.json.

    configs, experiments: one each per experiment · out: also write the submission there · solution:
    true labels; None: the file that 01 found, if any. Computed anew each time, in seconds.
    Errors: UserError when experiments do not go together, an earlier stage is missing, folds
    differ, or a submission of that name was made with other settings (without `overwrite`).
    """
    began = time.time()
    check_together(configs, experiments)
    config = configs[0]
    dataset = load_dataset(config.dataset)
    if dataset.test.empty:
        raise UserError(f"{dataset.directory / 'test.csv'} lists no images: nothing to submit")
    truth = find_solution(dataset, solution)
    directory, name = RUNS / config.dataset / "submissions", submission_name(experiments)
    members = load_members(configs, experiments, dataset)
    step = Work(directory, _settings(configs, experiments), _inputs(members, dataset))
    manifest = directory / f"{name}.manifest.json"
    if manifest.is_file() and not overwrite:
        step.check_settings(read_json(manifest, {"settings": dict})["settings"], manifest)
    labels, fold = _held_out(dataset)
    how = config.ensemble
    oof = [m.oof for m in members]
    weights = choose(oof, labels, fold, config.metric, how.weights, how.rounds)
    table = oof_table(members, weights, labels, fold, dataset)
    test = average([m.test for m in members], weights.final)
    ids = np.sort(dataset.test["image_id"].to_numpy(str))
    score, scored = score_solution(test, ids, dataset, truth) if truth else (None, 0)
    path = _write(directory / f"{name}.csv", test, ids, dataset)
    if out is not None:
        write_bytes(out, path.read_bytes())
    write_json(manifest, _facts(step, began, name, members, weights, table, score, scored))
    return Result(path, table, weights, score, scored, len(ids))


def check_together(configs: list[Config], experiments: list[str]) -> None:
    """Errors: UserError unless experiments have names of their own, and one dataset, metric and way
    of choosing weights."""
    if len(set(experiments)) < len(experiments):
        raise UserError(f"--config: experiments need names of their own, found {experiments}")
    for key, values in {
        "dataset": [c.dataset for c in configs],
        "metric": [c.metric for c in configs],
        "ensemble.weights": [c.ensemble.weights for c in configs],
        "ensemble.rounds": [c.ensemble.rounds for c in configs],
    }.items():
        if len(set(values)) > 1:
            pairs = ", ".join(f"{n}: {v}" for n, v in zip(experiments, values, strict=True))
            raise UserError(f"--config: one {key} is needed for an ensemble, found {pairs}")


def submission_name(experiments: list[str]) -> str:
    """The experiments joined by `+`; where that is too long for a file, the first and a digest."""
    name = "+".join(experiments)
    if len(name) <= LONGEST:
        return name
    short = digest({"experiments": experiments})[:8]
    return f"{experiments[0][:80]}+{len(experiments) - 1}-more-{short}"


def oof_table(
    members: list[Member], weights: Weights, labels: np.ndarray, fold: np.ndarray, dataset: Dataset
) -> pd.DataFrame:
    """Columns member, weight and the scores of `src.metrics.summary`; the last row, `ensemble`, is
    cross-fitted: each fold with the weights that were chosen on the others."""
    bins = dataset.classes["bin"].to_numpy()
    rows = [
        {"member": m.name, "weight": w} | summary(m.oof, labels, bins)
        for m, w in zip(members, weights.final, strict=True)
    ]
    combined = np.empty_like(members[0].oof)
    for k, shares in weights.per_fold.items():
        combined[fold == k] = average([m.oof[fold == k] for m in members], shares)
    scores = summary(combined, labels, bins)
    return pd.DataFrame([*rows, {"member": "ensemble", "weight": 1.0} | scores])


def _write(path: Path, test: np.ndarray, ids: np.ndarray, dataset: Dataset) -> Path:
    """The checked submission, and the log-probabilities behind it as .npz."""
    submission = submission_table(test, ids, dataset)
    check_submission(submission, dataset)
    unknown = np.full(len(ids), UNKNOWN)
    Predictions(ids, test, unknown, unknown).save(path.with_name(f"{path.stem}.npz"))
    return write_table(path, submission)


def _held_out(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Labels and folds of the held-out images, sorted by image_id as the members are."""
    images = dataset.images[dataset.images["fold"].isin(dataset.folds)]
    order = np.argsort(images["image_id"].to_numpy(str), kind="stable")
    return images["label"].to_numpy()[order], images["fold"].to_numpy()[order]


def _settings(configs: list[Config], experiments: list[str]) -> dict:
    members = {n: c.ensemble.members for n, c in zip(experiments, configs, strict=True)}
    how = configs[0].ensemble
    return {
        "members": members,
        "weights": how.weights,
        "rounds": how.rounds,
        "metric": configs[0].metric,
    }


def _inputs(members: list[Member], dataset: Dataset) -> dict[str, Path]:
    tables = {n: dataset.directory / n for n in ("folds.csv", "classes.csv", "test.csv")}
    return tables | {name: path for m in members for name, path in m.files.items()}


def _facts(
    step: Work,
    began: float,
    name: str,
    members: list[Member],
    weights: Weights,
    table: pd.DataFrame,
    score: dict[str, float] | None,
    scored: int,
) -> dict:
    """The manifest. Submissions share a directory, so `Step.finish` cannot write it."""

    def known(row: dict) -> dict:
        return {k: v for k, v in row.items() if isinstance(v, float) and v == v}

    rows = table.drop(columns="weight").set_index("member").to_dict("index")
    metrics = {"oof": known(rows["ensemble"])}
    if score is not None:
        metrics["solution"] = known(score) | {"images": scored}
    return {
        "status": "finished",
        "argv": sys.argv,
        "settings": step.settings,
        "settings_sha256": digest(step.settings),
        "git": git_state(),
        "inputs": step.inputs,
        "outputs": {f: sha256(step.directory / f) for f in (f"{name}.csv", f"{name}.npz")},
        "versions": versions(),
        "seconds": round(time.time() - began, 1),
        "metrics": metrics,
        "weights": dict(zip([m.name for m in members], weights.final, strict=True)),
        "method": weights.method,
        "reason": weights.reason,
        "members_oof": {m.name: known(rows[m.name]) for m in members},
    }
