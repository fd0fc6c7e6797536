"""The members of an ensemble: log-probabilities of one head of one experiment, OOF and test."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from src.artifacts.dataset import INPUTS, Dataset, check_same_folds, fold_name
from src.artifacts.files import read_json, sha256
from src.artifacts.ids import check_same_ids
from src.artifacts.oof import check_finished, check_held_out, head_dir, load_oof, script_of
from src.artifacts.parts import check_posthoc, parts_of
from src.artifacts.predictions import Predictions, load_predictions
from src.artifacts.space import space
from src.artifacts.work import MANIFEST, RUNS, checked, made
from src.config.names import STAGE1, of_stage1
from src.config.schema import Config
from src.errors import UserError
from src.fusion.observations import Strength, cross_fitted, observations_of
from src.fusion.store import ARRAYS, RECIPE
from src.metrics import chunks

OR_ELSE = (
    " Or set ensemble.missing_folds=common: members are then compared on the folds they share."
)


@dataclass(frozen=True)
class Member:
    """name: <experiment>/<head> · oof: [N, K] log-probabilities in the order of the held-out images
    sorted by image_id, of observations (data.observation) in that of their first images · test:
    [M, K], in the order of test.csv sorted by image_id; images of one observation have the same ·
    files: what it was read from, by name · strength: of attention, None without observations ·
    predicted: the manifest of 05"""

    name: str
    oof: np.ndarray
    test: np.ndarray
    files: dict[str, Path]
    strength: Strength | None = None
    predicted: dict = field(default_factory=dict)


def held_out_by_all(configs: list[Config], experiments: list[str], dataset: Dataset) -> Dataset:
    """The dataset with the folds alone that every member has, as ensemble.missing_folds allows.

    Only there all members are out of fold, so that they are compared on the same images, and none
    is given what it would be elsewhere: filled in with the mean of the others, a member of one fold
    would look as good as they are together. `posthoc` needs every fold, 04 sees to that.
    Errors: UserError for folds that are missing and must not, or without a common fold.
    """
    finished = {}
    for config, experiment in zip(configs, experiments, strict=True):
        for head in config.ensemble.members:
            directory = head_dir(RUNS / dataset.directory.parent.name / experiment, head)
            if head == "posthoc" or not directory.is_dir():
                continue  # what is missing altogether is named when it is loaded
            if config.ensemble.missing_folds == "refuse":
                check_finished(directory, dataset, script_of(head), OR_ELSE)
            finished[f"{experiment}/{head}"] = {
                k for k in dataset.folds if (directory / fold_name(k) / MANIFEST).is_file()
            }
    common = set(dataset.folds).intersection(*finished.values())
    if not common:
        there = "; ".join(f"{name}: {sorted(folds)}" for name, folds in finished.items())
        raise UserError(
            f"no fold is finished by all members, so that they cannot be compared ({there}). Run "
            "`python 02_train_stage1.py --folds K` (and 03) of those that lack a fold of the others"
        )
    return replace(dataset, chosen=tuple(sorted(common)))


def load_members(
    configs: list[Config], experiments: list[str], dataset: Dataset, scored: Dataset
) -> list[Member]:
    """Members of all experiments, sorted by name. scored: the dataset with the folds that count

    Errors: UserError when a stage is missing, or was made from another folds.csv.
    """
    found = [
        _load(experiment, head, dataset, scored, config)
        for config, experiment in zip(configs, experiments, strict=True)
        for head in config.ensemble.members
    ]
    return sorted(found, key=lambda member: member.name)


def _load(experiment: str, head: str, dataset: Dataset, scored: Dataset, config: Config) -> Member:
    home = RUNS / dataset.directory.parent.name / experiment
    oof, files = _oof(home, head, dataset, scored, config)
    path = _made(home / "predict" / f"{head}.npz", home, config)
    _made(path.with_name(MANIFEST), home, config)
    manifest = read_json(path.with_name(MANIFEST), INPUTS)
    check_same_folds(manifest, dataset, path)
    if head == "posthoc":
        _check_recipe(manifest, home / "posthoc", path)
    test = load_predictions(path, dataset.num_classes)
    check_same_ids(test.image_id, dataset.test["image_id"], str(path), "test.csv")
    named = {f"{experiment}/{p.relative_to(home).as_posix()}": p for p in [*files, path]}
    pair, strength = [log_probabilities(p.logits) for p in (oof, test)], None
    if config.data.observation is not None:
        pair, strength = _shared(pair, (oof, test), dataset, scored, config)
    return Member(f"{experiment}/{head}", *pair, named, strength, manifest)


def _made(path: Path, home: Path, config: Config) -> Path:
    """`path`. Errors: UserError when it is missing, with all the scripts that are still to run."""
    if path.is_file():
        return path
    heads = [home / "stage2" / name for name in config.head_names if not of_stage1(name)]
    stages = [
        ("02_train_stage1.py", [home / STAGE1]),
        ("03_train_stage2.py", heads),
        ("04_posthoc_calibrate.py", [home / "posthoc"]),
    ]
    lacking = [script for script, places in stages if not all(map(_begun, places))]
    first, *then = [*lacking, "05_predict.py"]
    more = f", then {', '.join(script[:2] for script in then)}" if then else ""
    raise UserError(f"{path} is missing. Run `python {first}` with the same --config first{more}.")


def _begun(stage: Path) -> bool:
    """Whether a stage is finished, or one of its folds."""
    return (stage / MANIFEST).is_file() or bool(made(stage, MANIFEST))


def _shared(
    pair: list[np.ndarray],
    images: tuple[Predictions, Predictions],
    dataset: Dataset,
    scored: Dataset,
    config: Config,
) -> tuple[list[np.ndarray], Strength]:
    """Log-probabilities of out-of-fold observations [U, K], cross-fitted, and of test images
    [M, K], of `pair` that are of images."""
    tables, files = (dataset.images, dataset.test), ("folds.csv", "test.csv")
    held_out, test = (
        observations_of(config, table, found.image_id, dataset.directory / file)
        for table, found, file in zip(tables, images, files, strict=True)
    )
    oof = images[0]
    how = (config.metric, config.judge)
    parts = parts_of(scored, oof.image_id)
    out, strength = cross_fitted(pair[0], oof.label, parts, held_out, *how)
    return [out, test.with_strength(strength.value).pool(pair[1])[test.of]], strength


def _oof(
    home: Path, head: str, dataset: Dataset, scored: Dataset, config: Config
) -> tuple[Predictions, list[Path]]:
    if head == "posthoc":
        path = _made(home / "posthoc" / MANIFEST, home, config).with_name("oof.npz")
        check_same_folds(read_json(path.with_name(MANIFEST), INPUTS), dataset, path)
        made = check_posthoc(path.parent, scored)
        oof = load_predictions(path, dataset.num_classes)
        check_held_out(oof, replace(dataset, chosen=tuple(made)), path)
        if scored.folds != made:
            oof = oof.rows(np.isin(oof.fold, scored.folds))
        return oof, [path]
    oof = load_oof(home, head, scored)
    return oof, [head_dir(home, head) / fold_name(fold) / "oof.npz" for fold in scored.folds]


def _check_recipe(manifest: dict, posthoc: Path, origin: Path) -> None:
    """Errors: UserError when 04 was run again since 05 made `origin`."""
    for name in (RECIPE, ARRAYS):
        used, path = manifest["inputs"].get(name), posthoc / name
        if used is not None and not (path.is_file() and used == sha256(checked(path))):
            raise UserError(
                f"{origin}: made with another {path} than the one there now. "
                "Run `python 05_predict.py` with the same --config again."
            )


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """log softmax, [N, K] float32: the one scale on which members can be averaged."""
    out = space(logits.shape)
    for rows in chunks(*logits.shape):
        out[rows] = log_softmax(logits[rows].astype(np.float64), axis=1)
    return out
