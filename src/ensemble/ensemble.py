"""Stage 6: the logits of many heads and experiments → one submission."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from src.artifacts.dataset import Dataset, load_dataset, own_columns
from src.artifacts.files import read_json, sha256, write_arrays, write_json
from src.artifacts.marks import pseudo_labelled
from src.artifacts.predictions import UNKNOWN, Predictions
from src.artifacts.target_prior import csv_of, load_target_prior
from src.artifacts.work import RUNS, Work, digest, git_state, versions
from src.config.metric import own_files
from src.config.schema import Config
from src.config.tree import plain
from src.ensemble.asked import asked_for
from src.ensemble.choice import Choice
from src.ensemble.combiner import Pool
from src.ensemble.decisions import check_fits, written
from src.ensemble.expected import expected
from src.ensemble.label_shift import Shift, label_shift
from src.ensemble.members import Member, held_out_by_all, load_members
from src.ensemble.review import Review, combined
from src.errors import UserError
from src.forecast import Forecast
from src.fusion.decision import Decision, decided
from src.fusion.observations import observations_of
from src.fusion.store import pack
from src.metrics import Gain, bin_numbers, rule_text, summary
from src.submission.answer import Answer
from src.submission.format import Sheet
from src.submission.solution import find_solution, score_solution
from src.submission.unknown import Flags, flags
from src.submission.write import copy_submission, sample_of, write_submission

LONGEST = 120  # letters of a submission's name


@dataclass(frozen=True)
class Result:
    """submission: the file · sheet: how it is made up · flags: images of the unknown class, where
    the config names one · oof: a row per member and the ensemble, with weights and cross-fitted
    scores · choice: the combiner and why · score: on the solution, where there is one · scored:
    how many of `images` test images that is · review: of several members, what each brings ·
    decision: how labels were made of it · expected: the score that it can expect · shift: what was
    done about the test's class prior, where that was asked for"""

    submission: Path
    sheet: Sheet
    flags: Flags | None
    oof: pd.DataFrame
    choice: Choice
    score: dict[str, float] | None
    scored: int
    images: int
    review: Review | None = None
    decision: Decision | None = None
    expected: Forecast | None = None
    shift: Shift | None = None


def ensemble(
    configs: list[Config],
    experiments: list[str],
    *,
    overwrite: bool = False,
    out: str | Path | None = None,
    solution: str | Path | None = None,
) -> Result:
    """Combine the members, write runs/<dataset>/submissions/<name>.csv (or .csv.gz), .npz and
    .manifest.json.

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
    asked = asked_for(config, dataset)
    sample, sheet = sample_of(asked.dataset, config.submission)
    check_fits(config.metric, sheet)
    truth = find_solution(dataset, solution)
    directory, name = RUNS / config.dataset / "submissions", submission_name(experiments)
    scored_on = held_out_by_all(configs, experiments, dataset)
    members = load_members(configs, experiments, dataset, scored_on)
    inputs = _inputs(members, dataset) | own_files(config.metric)
    if path := csv_of(config):
        inputs["target_prior"] = path
    work = Work(directory, _settings(configs, experiments), inputs)
    manifest = directory / f"{name}.manifest.json"
    if manifest.is_file() and not overwrite:
        work.check_settings(read_json(manifest, {"settings": dict})["settings"], manifest)
    labels, fold = _held_out(scored_on, config)
    bins = bin_numbers(dataset.classes["bin"].to_numpy())
    target = load_target_prior(config, dataset)
    pool = Pool([m.oof for m in members], labels, config.metric, bins, target)
    choice, reviewed = combined([m.name for m in members], pool, fold, config)
    decision = decided(config, choice.cross_fitted(pool.members, fold), labels, fold, target)
    table = oof_table(members, choice, labels, fold, dataset, decision)
    test = choice.combine([m.test for m in members])
    keys = config.submission
    found = keys.unknown and flags(
        keys.unknown, configs, experiments, scored_on,
        lambda: (choice.cross_fitted(pool.members, fold), test),
    )  # fmt: skip
    found, rows = asked.agreed(found), asked.rows
    shift = _shift(choice, pool, fold, test, decision, dataset, config)
    unshifted, test = test, shift.apply(test) if shift else test
    pair = (unshifted[rows], decision.apply(test[rows]))
    foreseen = expected(members, choice, labels, fold, *pair, decision, dataset, config)
    flagged = found and found.flagged[rows]
    said = found and (keys.unknown.id, flagged)
    by = (test[rows], asked.ids, asked.dataset)
    score, scored = score_solution(*by, truth, decision, unknown=said) if truth else (None, 0)
    told = written(decision, test[rows], sheet)
    answer = Answer(told, dataset.classes["class_id"].tolist(), keys, flagged)
    path = directory / (f"{name}.csv.gz" if keys.gzip else f"{name}.csv")
    write_submission(path, sample, sheet, answer, asked.ids)
    _save(directory / f"{name}.npz", test, dataset)
    if out is not None:
        copy_submission(path, out)
    arrays: dict[str, np.ndarray] = {}
    params = pack(choice.final, arrays)
    rule = pack(decision.facts(), arrays, "decision")
    shifted = {"label_shift": pack(shift.facts(), arrays, "label_shift")} if shift else {}
    if arrays:
        write_arrays(directory / f"{name}.params.npz", **arrays)
    files = [path.name, f"{name}.npz", *([f"{name}.params.npz"] if arrays else [])]
    chosen = _chosen(choice, members, config) | {"params": params, "folds": scored_on.folds}
    chosen |= {"decision": rule, "expected": foreseen.facts()}
    chosen |= shifted | (reviewed.facts() if reviewed else {})
    if config.data.observation is not None:
        strengths = {m.name: m.strength.facts() for m in members}
        chosen["observations"] = {"pool": config.observations.pool, "attention": strengths}
    homes = {name: RUNS / config.dataset / name for name in experiments}
    if notes := {n: note for n, home in homes.items() if (note := pseudo_labelled(home))}:
        chosen["pseudo_labelled"] = notes
    chosen["submission"] = sheet.facts() | ({"unknown": found.facts()} if found else {})
    write_json(manifest, _facts(work, began, files, chosen, table, score, scored))
    work.release()
    scores = (table, choice, score, scored, len(asked.ids))
    return Result(path, sheet, found, *scores, reviewed, decision, foreseen, shift)


def _shift(
    choice: Choice,
    pool: Pool,
    fold: np.ndarray,
    test: np.ndarray,
    decision: Decision,
    dataset: Dataset,
    config: Config,
) -> Shift | None:
    """What `ensemble.label_shift` asks for, judged; None: nothing is asked for."""
    asked = config.ensemble.label_shift
    if asked == "none":
        return None
    if decision.rule:
        why = f"decisions go by a rule ({decision.rule}) that was fitted under training's class "
        return Shift(asked, False, why + "prior; ensemble.decision: plain goes without it")
    oof, counts = choice.cross_fitted(pool.members, fold), dataset.counts(dataset.images)
    how = (counts, config.metric, config.judge, pool.target)
    return label_shift(asked, oof, pool.labels, fold, test, *how)


def check_together(configs: list[Config], experiments: list[str]) -> None:
    """Errors: UserError unless experiments have names of their own, and one dataset, metric, way
    of combining, rule for keeping it and format of the submission."""
    if len(set(experiments)) < len(experiments):
        raise UserError(f"--config: experiments need names of their own, found {experiments}")
    for key, values in {
        "dataset": [c.dataset for c in configs],
        "metric": [c.metric for c in configs],
        "target_prior": [c.target_prior for c in configs],
        "ensemble.combiner": [plain(c.ensemble.combiner) for c in configs],
        "ensemble.decision": [c.ensemble.decision for c in configs],
        "ensemble.fallback": [c.ensemble.fallback for c in configs],
        "ensemble.label_shift": [c.ensemble.label_shift for c in configs],
        "ensemble.missing_folds": [c.ensemble.missing_folds for c in configs],
        "judge": [plain(c.judge) for c in configs],
        "submission": [plain(c.submission) for c in configs],
        "data.observation": [c.data.observation for c in configs],
        "observations": [plain(c.observations) for c in configs],
    }.items():
        if any(value != values[0] for value in values):
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
    members: list[Member],
    choice: Choice,
    labels: np.ndarray,
    fold: np.ndarray,
    dataset: Dataset,
    decision: Decision,
) -> pd.DataFrame:
    """Columns member, weight, the scores of `src.metrics.summary`, gain, gain_low, gain_high; the
    last row, `ensemble`, is cross-fitted, decisions included: each fold with what was fitted on the
    others. The gain is the combiner's over the mean, NaN where the ensemble is the mean. Without
    weights that column is NaN."""
    bins, shares = dataset.classes["bin"].to_numpy(), choice.shares
    weights = [float("nan")] * len(members) if shares is None else shares
    rows = [
        {"member": m.name, "weight": w} | summary(m.oof, labels, bins, decision.metric)
        for m, w in zip(members, weights, strict=True)
    ]
    oof = choice.cross_fitted([m.oof for m in members], fold)
    scores = decision.summary(oof, decision.cross_fitted(oof, fold), labels, bins)
    gain = Gain() if choice.name == "mean" else choice.gain
    whole = float("nan") if shares is None else 1.0
    last = {"member": "ensemble", "weight": whole} | scores | gain.named()
    return pd.DataFrame([*rows, last])


def _save(path: Path, test: np.ndarray, dataset: Dataset) -> None:
    """The log-probabilities behind a submission, of each test image."""
    ids = np.sort(dataset.test["image_id"].to_numpy(str))
    unknown = np.full(len(ids), UNKNOWN)
    columns = own_columns(dataset.test.set_index("image_id").loc[ids])
    Predictions(ids, test, unknown, unknown, columns=columns).save(path)


def _held_out(dataset: Dataset, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Labels and folds of the held-out images or observations, in the order of the members."""
    images = dataset.images[dataset.images["fold"].isin(dataset.folds)]
    ids = np.sort(images["image_id"].to_numpy(str))
    observed = observations_of(config, images, ids, dataset.directory / "folds.csv")
    ids = ids if observed is None else ids[observed.first]
    rows = images.set_index("image_id").loc[ids]
    return rows["label"].to_numpy(), rows["fold"].to_numpy()


def _settings(configs: list[Config], experiments: list[str]) -> dict:
    keys = configs[0].ensemble  # what earlier submissions lack is named where it is not the default
    newer = {
        k: getattr(keys, k)
        for k in ("decision", "fallback", "label_shift", "missing_folds")
        if k in keys.changed()
    }
    if configs[0].data.observation is not None:
        newer |= {"observation": configs[0].data.observation}
        newer |= {"observations": configs[0].observations}
    if configs[0].target_prior is not None:
        newer["target_prior"] = configs[0].target_prior
    return newer | {
        "members": {n: c.ensemble.members for n, c in zip(experiments, configs, strict=True)},
        "combiner": configs[0].ensemble.combiner,
        "judge": configs[0].judge,
        "submission": configs[0].submission,
        "metric": configs[0].metric,
    }


def _inputs(members: list[Member], dataset: Dataset) -> dict[str, Path]:
    tables = {n: dataset.directory / n for n in ("folds.csv", "classes.csv", "test.csv")}
    return tables | {name: path for m in members for name, path in m.files.items()}


def _chosen(choice: Choice, members: list[Member], config: Config) -> dict:
    """How the members were combined, and the weight of each, null where there is none."""
    shares = choice.shares or [None] * len(members)
    return {
        "weights": {m.name: share for m, share in zip(members, shares, strict=True)},
        "method": choice.method,
        "reason": choice.reason,
        "rule": rule_text(config.judge),
        **_known(choice.gain.named()),
    }


def _known(row: dict) -> dict:
    """The numbers of a row that are some."""
    return {k: v for k, v in row.items() if isinstance(v, float) and v == v}


def _facts(
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
    metrics = {"oof": _known(rows.pop("ensemble"))}
    if score is not None:
        metrics["solution"] = _known(score) | {"images": scored}
    return {
        "status": "finished",
        "argv": sys.argv,
        "settings": work.settings,
        "settings_sha256": digest(work.settings),
        "git": git_state(),
        "inputs": work.inputs,
        "outputs": {name: sha256(work.directory / name) for name in files},
        "versions": versions(),
        "seconds": round(time.time() - began, 1),
        "metrics": metrics,
        **chosen,
        "members_oof": {name: _known(row) for name, row in rows.items()},
    }
