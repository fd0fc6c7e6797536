"""Stage 6: the logits of many heads and experiments → one submission."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from src.artifacts.files import write_arrays, write_json
from src.artifacts.marks import pseudo_labelled
from src.artifacts.parts import caveat
from src.config.schema import Config
from src.ensemble.choice import Choice
from src.ensemble.combiner import Pool
from src.ensemble.decisions import written
from src.ensemble.expected import expected
from src.ensemble.gathered import Gathered, gather
from src.ensemble.label_shift import Shift, label_shift
from src.ensemble.record import facts_of, known, manifest_of, oof_noise, oof_table, save_test
from src.ensemble.review import Review, combined
from src.forecast import Forecast
from src.fusion.decision import Decision, decided
from src.fusion.store import pack
from src.submission.answer import Answer
from src.submission.format import Sheet
from src.submission.solution import score_solution
from src.submission.unknown import Flags, flags
from src.submission.write import copy_submission, write_submission


@dataclass(frozen=True)
class Result:
    """submission: the file · sheet: how it is made up · flags: images of the unknown class, where
    the config names one · oof: a row per member and the ensemble, with weights and cross-fitted
    scores · choice: the combiner and why · score: on the solution, where there is one · scored:
    how many of `images` test images that is · review: of several members, what each brings ·
    decision: how labels were made of it · expected: the score that it can expect · shift: what was
    done about the test's class prior, where that was asked for · caveat: where some folds stand for
    all"""

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
    caveat: str | None = None


@dataclass(frozen=True)
class Made:
    """What became of the members. choice, review, decision, flags, shift, forecast, table: as in
    `Result` · test: log-probabilities [M, K] of the test images sorted by image_id, shifted where a
    shift is kept · noise: standard errors of the ensemble's scores in `table`"""

    choice: Choice
    review: Review | None
    decision: Decision
    table: pd.DataFrame
    test: np.ndarray
    flags: Flags | None
    shift: Shift | None
    forecast: Forecast
    noise: dict[str, float]


def ensemble(
    configs: list[Config],
    experiments: list[str],
    *,
    overwrite: bool = False,
    out: str | Path | None = None,
    solution: str | Path | None = None,
    folds: list[str] = (),
) -> Result:
    """Combine the members, write runs/<dataset>/submissions/<name>.csv (or .csv.gz), .npz and
    .manifest.json.

    configs, experiments: one each per experiment · out: also write the submission there · solution:
    true labels; None: the file that 01 found, if any · folds: numbers; none: all. Computed anew
    each time, in seconds. Errors: UserError, see `src.ensemble.gathered.gather`.
    """
    began = time.monotonic()
    found = gather(configs, experiments, solution, overwrite, folds)
    made = _made(found)
    score, scored = _scored(found, made)  # a solution that cannot be read stops it here
    path = _submission(found, made)
    if out is not None:
        copy_submission(path, out)
    _record(found, made, path, score, scored, began)
    found.work.release()
    return Result(
        path,
        found.sheet,
        made.flags,
        made.table,
        made.choice,
        score,
        scored,
        len(found.asked.ids),
        made.review,
        made.decision,
        made.forecast,
        made.shift,
        caveat(found.scored_on),
    )


def _made(found: Gathered) -> Made:
    """Everything that is fitted out of fold, and what it makes of the test images."""
    config, pool, fold, members = found.config, found.pool, found.parts, found.members
    choice, review = combined([m.name for m in members], pool, fold, config)
    oof = choice.cross_fitted(pool.members, fold)
    test = choice.combine([m.test for m in members])
    decision = decided(config, lambda: oof, pool.labels, fold, pool.target)
    table = oof_table(members, choice, oof, pool.labels, fold, found.dataset, decision)
    unknown = config.submission.unknown and flags(
        config.submission.unknown,
        found.configs,
        found.experiments,
        found.scored_on,
        lambda: (oof, test),
    )
    counts = found.dataset.counts(found.dataset.images)
    shift = shift_of(config, pool, oof, fold, test, decision, counts)
    shifted, rows = shift.apply(test) if shift else test, found.asked.rows
    pair = (test[rows], decision.apply(shifted[rows]))
    foreseen = expected(found, choice, oof, *pair, decision)
    agreed = found.asked.agreed(unknown)
    noise = oof_noise(oof, pool.labels, fold, found.dataset, decision)
    return Made(choice, review, decision, table, shifted, agreed, shift, foreseen, noise)


def shift_of(
    config: Config,
    pool: Pool,
    oof: np.ndarray,
    fold: np.ndarray,
    test: np.ndarray,
    decision: Decision,
    counts: np.ndarray,
) -> Shift | None:
    """What `ensemble.label_shift` asks for, judged; None: nothing is asked for. oof, test: as in
    `label_shift` · counts: [K] training images of each class"""
    asked = config.ensemble.label_shift
    if asked == "none":
        return None
    if decision.rule:
        why = f"decisions go by a rule ({decision.rule}) that was fitted under training's class "
        return Shift(asked, False, why + "prior; ensemble.decision: plain goes without it")
    how = (counts, config.metric, config.judge, pool.target)
    return label_shift(asked, oof, pool.labels, fold, test, *how)


def _submission(found: Gathered, made: Made) -> Path:
    """The file, in the format of the sample."""
    keys, rows = found.config.submission, found.asked.rows
    flagged = made.flags and made.flags.flagged[rows]
    told = written(made.decision, made.test[rows], found.sheet)
    answer = Answer(told, found.dataset.classes["class_id"].tolist(), keys, flagged)
    path = found.work.directory / (f"{found.name}.csv.gz" if keys.gzip else f"{found.name}.csv")
    write_submission(path, found.sample, found.sheet, answer, found.asked.ids)
    return path


def _scored(found: Gathered, made: Made) -> tuple[dict[str, float] | None, int]:
    """Scores on the solution, and of how many images; None and 0 where there is none."""
    if not found.solution:
        return None, 0
    rows, keys = found.asked.rows, found.config.submission
    unknown = made.flags and (keys.unknown.id, made.flags.flagged[rows])
    by = (made.test[rows], found.asked.ids, found.asked.dataset)
    return score_solution(*by, found.solution, made.decision, unknown=unknown)


def _record(
    found: Gathered,
    made: Made,
    path: Path,
    score: dict[str, float] | None,
    scored: int,
    began: float,
) -> None:
    """Log-probabilities and parameters beside the submission; the manifest last."""
    directory, name, config = found.work.directory, found.name, found.config
    save_test(directory / f"{name}.npz", made.test, found.dataset)
    arrays: dict[str, np.ndarray] = {}
    chosen = facts_of(made.choice, found.members, config)
    chosen |= {"params": pack(made.choice.final, arrays), "folds": found.scored_on.folds}
    chosen |= {"decision": pack(made.decision.facts(), arrays, "decision")}
    chosen |= {"expected": made.forecast.facts(), "noise": known(made.noise)}
    if made.shift:
        chosen["label_shift"] = pack(made.shift.facts(), arrays, "label_shift")
    if made.review:
        chosen |= made.review.facts()
    if config.data.observation is not None:
        strengths = {m.name: m.strength.facts() for m in found.members}
        chosen["observations"] = {"pool": config.observations.pool, "attention": strengths}
    if notes := {n: note for n, home in found.homes.items() if (note := pseudo_labelled(home))}:
        chosen["pseudo_labelled"] = notes
    unknown = {"unknown": made.flags.facts()} if made.flags else {}
    chosen["submission"] = found.sheet.facts() | unknown
    files = [path.name, f"{name}.npz"]
    if arrays:
        files += [write_arrays(directory / f"{name}.params.npz", **arrays).name]
    facts = manifest_of(found.work, began, files, chosen, made.table, score, scored)
    write_json(directory / f"{name}.manifest.json", facts)
