"""The members of an ensemble: log-probabilities of one head of one experiment, OOF and test."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from src.artifacts.dataset import INPUTS, Dataset, check_same_folds, fold_name
from src.artifacts.files import read_json, sha256
from src.artifacts.ids import check_same_ids
from src.artifacts.oof import check_held_out, load_oof
from src.artifacts.predictions import Predictions, load_predictions
from src.artifacts.work import MANIFEST, RUNS, checked, require
from src.config.names import of_stage1
from src.config.schema import Config
from src.errors import UserError
from src.fusion.store import ARRAYS, RECIPE
from src.metrics import chunks


@dataclass(frozen=True)
class Member:
    """name: <experiment>/<head> · oof: [N, K] log-probabilities in the order of the held-out images
    sorted by image_id · test: [M, K], in the order of test.csv sorted by image_id · files: what it
    was read from, by name"""

    name: str
    oof: np.ndarray
    test: np.ndarray
    files: dict[str, Path]


def load_members(configs: list[Config], experiments: list[str], dataset: Dataset) -> list[Member]:
    """Members of all experiments, sorted by name.

    Errors: UserError when a stage is missing, or was made from another folds.csv.
    """
    found = [
        _load(experiment, head, dataset)
        for config, experiment in zip(configs, experiments, strict=True)
        for head in config.ensemble.members
    ]
    return sorted(found, key=lambda member: member.name)


def _load(experiment: str, head: str, dataset: Dataset) -> Member:
    home = RUNS / dataset.directory.parent.name / experiment
    oof, files = _oof(home, head, dataset)
    path = require(home / "predict" / f"{head}.npz", "05_predict.py")
    require(path.with_name(MANIFEST), "05_predict.py")
    manifest = read_json(path.with_name(MANIFEST), INPUTS)
    check_same_folds(manifest, dataset, path)
    if head == "posthoc":
        _check_recipe(manifest, home / "posthoc", path)
    test = load_predictions(path, dataset.num_classes)
    check_same_ids(test.image_id, dataset.test["image_id"], str(path), "test.csv")
    named = {f"{experiment}/{p.relative_to(home).as_posix()}": p for p in [*files, path]}
    return Member(
        f"{experiment}/{head}", log_probabilities(oof.logits), log_probabilities(test.logits), named
    )


def _oof(home: Path, head: str, dataset: Dataset) -> tuple[Predictions, list[Path]]:
    if head == "posthoc":
        path = require(home / "posthoc" / MANIFEST, "04_posthoc_calibrate.py").with_name("oof.npz")
        check_same_folds(read_json(path.with_name(MANIFEST), INPUTS), dataset, path)
        oof = load_predictions(path, dataset.num_classes)
        check_held_out(oof, dataset, path)
        return oof, [path]
    stage1 = of_stage1(head)
    directory = home / "stage1" if stage1 else home / "stage2" / head
    script = "02_train_stage1.py" if stage1 else "03_train_stage2.py"
    oof = load_oof(directory, dataset, script)
    return oof, [directory / fold_name(fold) / "oof.npz" for fold in dataset.folds]


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
    out = np.empty(logits.shape, np.float32)
    for rows in chunks(*logits.shape):
        out[rows] = log_softmax(logits[rows].astype(np.float64), axis=1)
    return out
