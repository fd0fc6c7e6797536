"""The table that matters: what each stage does to many, medium and few, on out-of-fold images.

Logits are read one file at a time and dropped after scoring, so that K = 8142 fits a laptop.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from src.artifacts.dataset import ALWAYS_TRAIN, INPUTS, Dataset, check_same_folds
from src.artifacts.files import read_json
from src.artifacts.ids import check_unique
from src.artifacts.parts import parts_of
from src.artifacts.predictions import ZERO_SHOT, Predictions, load_predictions, stack
from src.artifacts.work import MANIFEST
from src.config.schema import Config
from src.fusion.observations import cross_fitted, observations_of
from src.metrics import (
    Gain,
    Outcomes,
    bin_names,
    metric_of,
    outcomes_of,
    paired_gain,
    pooled,
    short_name,
    standard_errors,
)

SUBMISSION = {  # what the page reads in the manifest of a submission
    **dict.fromkeys(("settings/members", "inputs", "metrics/oof", "members_oof"), dict),
    **dict.fromkeys(("settings/metric", "method", "reason"), str),
}
LARGEST = 2**22  # numbers of an outcome [N, K] that stays in memory after scoring
UNTRAINED = "zero-shot"  # row of the stage table
HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class Scored:
    """What is kept of one stage's pooled out-of-fold predictions.

    image_id, label: [N] · outcomes: of each image · scores: by metric · reliability: what
    `metrics.calibration` returns · noise: standard errors of scores · distance: [N], how far images
    are from what the head compares them with, or None
    """

    image_id: np.ndarray
    label: np.ndarray
    outcomes: Outcomes
    scores: dict[str, float]
    reliability: tuple[float, np.ndarray, np.ndarray, np.ndarray]
    noise: dict[str, float] = field(default_factory=dict)
    distance: np.ndarray | None = None

    def keeps(self, metric: str) -> bool:
        """Whether the outcomes that the metric is scored on are among those kept."""
        return not metric_of(metric).wide or metric in self.outcomes.more


def score_rows(data: Dataset, experiment: str, stages: dict[str, Scored]) -> dict[str, dict]:
    """All scores of each stage by name, those of the ensembles that 06 built on them last."""
    rows = {name: {"images": len(s.label)} | s.scores for name, s in stages.items()}
    held_out = int((data.images["fold"] != ALWAYS_TRAIN).sum())
    for name, facts in load_submissions(data).items():
        if experiment in facts["settings"]["members"] and _current(facts, data):
            row = "ensemble" if name == experiment else f"ensemble {name}"
            rows[row] = {"images": held_out} | facts["metrics"]["oof"]
            rows[row]["noise"] = facts.get("noise", {})
    return rows


def gains(stages: dict[str, Scored], metric: str, num_classes: int) -> dict[str, Gain]:
    """What each stage gains over the first one by the competition's metric, with its interval;
    nothing for stages that are scored on other images, or whose outcomes were too large to keep."""
    (_, first), *others = stages.items()
    found = {}
    for name, stage in others:
        if np.array_equal(stage.image_id, first.image_id) and stage.keeps(metric):
            before, after = first.outcomes.of(metric), stage.outcomes.of(metric)
            found[name] = paired_gain(before, after, first.label, num_classes, metric)
    return found


def table_of(data: Dataset, rows: dict[str, dict], *also: str) -> pd.DataFrame:
    """One row per finished stage, scored on its pooled out-of-fold images, in the order given.

    Index: stage1, each stage2/<head>, posthoc (cross-fitted), ensemble. Columns: images,
    accuracy, balanced_accuracy, macro_f1, the metrics `also`, the recall of each bin, nll, ece.
    """
    bins = bin_names(data.classes["bin"].to_numpy())
    columns = list(dict.fromkeys(["images", *HEADLINE, *also, *bins, "nll", "ece"]))
    index = pd.Index(rows, name="stage", dtype=object)
    return pd.DataFrame(list(rows.values()), index=index, columns=columns)


def load_submissions(data: Dataset) -> dict[str, dict]:
    """Manifests of the dataset's submissions by name."""
    paths = sorted((data.directory.parent / "submissions").glob("*.manifest.json"))
    return {path.name.removesuffix(".manifest.json"): read_json(path, SUBMISSION) for path in paths}


def _current(facts: dict, data: Dataset) -> bool:
    """Whether a submission was made from the out-of-fold files that are there now."""
    for name, found in facts["inputs"].items():
        manifest = data.directory.parent / Path(name).parent / MANIFEST
        if name.endswith("/oof.npz") and (
            not manifest.is_file()
            or read_json(manifest, {"outputs": dict})["outputs"].get("oof.npz") != found
        ):
            return False
    return True


def score_stages(
    data: Dataset, experiment: str, *also: str, config: Config | None = None
) -> dict[str, Scored]:
    """Every finished stage of an experiment, first to last, by the metrics `also` too; with
    data.observation in the config by observation, shown by its first image.

    Errors: UserError for a stage that was made from another folds.csv.
    """
    files = stage_files(data, experiment).items()
    return {name: _score_stage(data, paths, also, config) for name, paths in files}


def score_untrained(
    data: Dataset, experiment: str, *also: str, config: Config | None = None
) -> dict[str, dict]:
    """A row, as of `score_rows`, of what the network said before its training, by the names of the
    classes alone; none where it knew nothing."""
    home = data.directory.parent / experiment
    found = [path / ZERO_SHOT for path in fold_dirs(home / "stage1").values()]
    if not (files := [path for path in found if path.is_file()]):
        return {}
    scored = _score_stage(data, files, also, config)
    own = {"images": len(scored.label), "noise": scored.noise}
    return {UNTRAINED: own | scored.scores}


def _score_stage(
    data: Dataset, files: list[Path], also: tuple[str, ...], config: Config | None
) -> Scored:
    if config is not None and config.data.observation is not None:
        return _score_observations(data, files, also, config)
    return _score(data, files, also)


def stage_files(data: Dataset, experiment: str) -> dict[str, list[Path]]:
    """The finished out-of-fold files of each stage that has any."""
    home = data.directory.parent / experiment
    found = {"stage1": [path / "oof.npz" for path in fold_dirs(home / "stage1").values()]}
    for head in sorted((home / "stage2").glob("*/")):
        found[f"stage2/{head.name}"] = [path / "oof.npz" for path in fold_dirs(head).values()]
    if (home / "posthoc" / MANIFEST).is_file():
        found["posthoc"] = [home / "posthoc" / "oof.npz"]
    return {name: files for name, files in found.items() if files}


def fold_dirs(stage: Path) -> dict[int, Path]:
    """Finished `fold<k>` directories below a stage's directory, by k."""
    found = {}
    for path in stage.glob("fold*/"):
        number = re.fullmatch(r"fold(\d+)", path.name)
        if number and (path / MANIFEST).is_file() and (path / "oof.npz").is_file():
            found[int(number[1])] = path
    return dict(sorted(found.items()))


def _load(path: Path, data: Dataset) -> Predictions:
    """One out-of-fold file, of the present folds."""
    manifest = path.with_name(MANIFEST)
    facts = read_json(manifest, INPUTS) if manifest.is_file() else {"inputs": {}}
    if "folds.csv" in facts["inputs"]:  # later stages may name only what they read
        check_same_folds(facts, data, manifest)
    return load_predictions(path, data.num_classes)


def _score(data: Dataset, files: list[Path], also: tuple[str, ...]) -> Scored:
    parts = [_outcomes(data, path, also) for path in files]
    ids, labels, outcomes, distances = zip(*parts, strict=True)
    ids, label, found = np.concatenate(ids), np.concatenate(labels), pooled(outcomes)
    check_unique(ids, "out-of-fold predictions")
    order = np.argsort(ids, kind="stable")
    scored = _scored(data, ids[order], label[order], found.rows(order), also)
    if any(far is None for far in distances):
        return scored
    return replace(scored, distance=np.concatenate(distances)[order])


def _score_observations(
    data: Dataset, files: list[Path], also: tuple[str, ...], config: Config
) -> Scored:
    """Images of one observation share a prediction, as in 04 and 06; all logits at once."""
    oof = stack([_load(path, data) for path in files])
    observed = observations_of(config, data.images, oof.image_id, data.directory / "folds.csv")
    how = (observed, config.metric, config.judge)
    own = np.unique(oof.fold)
    parts = parts_of(replace(data, chosen=tuple(own.tolist())), oof.image_id)
    logits, _ = cross_fitted(oof.logits, oof.label, parts, *how)
    label = oof.label[observed.first]
    found = outcomes_of(logits, label, *also)
    return _scored(data, oof.image_id[observed.first], label, found, also)


def _scored(
    data: Dataset, ids: np.ndarray, label: np.ndarray, found: Outcomes, also: tuple[str, ...]
) -> Scored:
    calibrated = found.calibration(label)
    bins = data.classes["bin"].to_numpy()
    scores = found.summary(label, bins, *also, calibrated=calibrated)
    noise = standard_errors(found, label, bins, *also)
    small = {name: array for name, array in found.more.items() if array.size <= LARGEST}
    found = replace(found, more=small)
    return Scored(ids, label, found, scores, calibrated, noise)


def _outcomes(
    data: Dataset, path: Path, also: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, Outcomes, np.ndarray | None]:
    oof = _load(path, data)
    return oof.image_id, oof.label, outcomes_of(oof.logits, oof.label, *also), oof.distance


def format_table(table: pd.DataFrame) -> str:
    """Aligned text with three decimals, for a terminal; whole numbers stay whole."""

    def cell(value) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, int | np.integer):
            return str(value)
        return "–" if pd.isna(value) else f"{value:.3f}"

    columns = [[str(table.index.name or ""), *map(str, table.index)]]
    for name in table:
        columns.append(
            [short_name(str(name)).removesuffix("_accuracy"), *map(cell, table[name].tolist())]
        )
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for first, *rest in zip(*columns, strict=True):
        cells = [text.rjust(width) for text, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
