"""Out-of-fold predictions of a stage, checked against the folds they claim to be held out from."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from src.artifacts.dataset import INPUTS, Dataset, check_same_folds, fold_name
from src.artifacts.files import read_json
from src.artifacts.heads import head_path, load_head
from src.artifacts.ids import check_same_ids
from src.artifacts.predictions import Predictions, load_predictions, stack
from src.artifacts.work import MANIFEST
from src.config.names import STAGE1, branch_of, of_stage1
from src.errors import UserError, some
from src.logits import head_distance, head_logits


def check_finished(directory: Path, dataset: Dataset, script: str, or_else: str = "") -> None:
    """Errors: UserError that names the folds that `script` has not finished. or_else: a sentence
    on what else can be done"""
    unfinished = [k for k in dataset.folds if not (directory / fold_name(k) / MANIFEST).is_file()]
    if unfinished:
        numbers = " ".join(map(str, unfinished))
        raise UserError(
            f"{directory}: folds {numbers} of {' '.join(map(str, dataset.folds))} are missing. "
            f"Run `python {script} --folds {numbers}` with the same --config first, or this with "
            f"--folds and those that are finished.{or_else}"
        )


def load_folds(directory: Path, dataset: Dataset, script: str) -> dict[int, Predictions]:
    """Predictions of every fold's held-out images, from `directory`/fold<k>/oof.npz.

    Errors: UserError when folds are not finished (names them and the command that makes them), were
    made from another folds.csv, or do not hold exactly the fold's images with their labels.
    """
    check_finished(directory, dataset, script)
    found = {}
    for fold in dataset.folds:
        path = directory / fold_name(fold) / "oof.npz"
        check_same_folds(read_json(path.with_name(MANIFEST), INPUTS), dataset, path)
        found[fold] = load_predictions(path, dataset.num_classes)
        check_held_out(found[fold], dataset, path, fold)
    return found


def head_dir(home: Path, name: str) -> Path:
    """Of an experiment's head, with a directory for each fold."""
    return home / STAGE1 if of_stage1(name) else home / "stage2" / name


def script_of(name: str) -> str:
    """What makes a head."""
    return "02_train_stage1.py" if of_stage1(name) else "03_train_stage2.py"


def load_head_folds(home: Path, name: str, dataset: Dataset) -> dict[int, Predictions]:
    """Held-out predictions of a head by fold. What 02 wrote is the network's own; those of one of
    its branches come from the same features. Errors: as in `load_folds`."""
    found = load_folds(head_dir(home, name), dataset, script_of(name))
    if of_stage1(name) and branch_of(name):
        return {k: at_branch(part, home, name, k) for k, part in found.items()}
    return found


def at_branch(found: Predictions, home: Path, name: str, fold: int) -> Predictions:
    """A network's predictions with the logits of its head `name`."""
    kind, arrays = load_head(head_path(home, name, fold_name(fold)))
    f = found.features
    return found.with_logits(head_logits(f, arrays, kind), head_distance(f, arrays, kind))


def load_oof(home: Path, name: str, dataset: Dataset) -> Predictions:
    """The same of all folds as one, sorted by image_id."""
    parts = load_head_folds(home, name, dataset)
    return stack([parts[fold] for fold in sorted(parts)])


def optimism(stages: Iterable[Path]) -> list[str]:
    """Why the out-of-fold scores of some stages flatter, a sentence for each reason; often none.

    stages: directories of an experiment, stage1 and stage2/<head>; others give no reason
    """
    reasons = []
    for directory in stages:
        found = [read_json(path) for path in sorted(directory.glob(f"fold*/{MANIFEST}"))]
        if any(manifest.get("select") == "best" for manifest in found):  # older ones lack the fact
            reasons.append(
                "Out-of-fold scores are optimistic: stage 1 kept the epoch of each fold that was "
                "best on its held-out images (train.select: best)."
            )
        for key, did in (("pseudo", "made its pseudo-labels"), ("distill", "taught it")):
            others = [manifest.get(key, {}).get("optimistic", []) for manifest in found]
            reasons += [
                f"The same holds for the networks that {did}: {reason}"
                for reason in sorted({reason for of_fold in others for reason in of_fold})
            ]
        if keys := sorted({key for manifest in found for key in manifest.get("searched", {})}):
            reasons.append(_searched(directory, ", ".join(keys)))
    return reasons


def _searched(directory: Path, keys: str) -> str:
    stage1 = directory.name == "stage1"
    path = (directory.parent if stage1 else directory) / "search" / MANIFEST
    fold = "search.fold"
    if path.is_file():  # it is not needed any more, and may have been removed
        manifest = read_json(path, {"settings/search/fold": int})
        fold = f"fold {manifest['settings']['search']['fold']}"
    if stage1:
        return (
            "Out-of-fold scores are slightly optimistic: settings were searched on "
            f"{fold}'s training images, which the other folds hold out ({keys})."
        )
    return (
        f"Out-of-fold scores of {directory.name} are slightly optimistic: settings were searched "
        f"on the held-out images of all folds but {fold} ({keys})."
    )


def check_held_out(
    found: Predictions, dataset: Dataset, origin: Path, fold: int | None = None
) -> None:
    """Errors: UserError unless `found` is exactly the images of `fold` (None: of all folds), sorted
    by image_id, with the labels and folds of folds.csv."""
    images = dataset.images
    images = images[images["fold"].isin(dataset.folds if fold is None else [fold])]
    where = "all folds" if fold is None else f"fold {fold}"
    check_same_ids(found.image_id, images["image_id"], str(origin), f"{where} of folds.csv")
    for name, column in (("label", found.label), ("fold", found.fold)):
        wrong = np.flatnonzero(column != images[name].to_numpy())
        if len(wrong):
            raise UserError(
                f"{origin}: {len(wrong)} images have another {name} than in folds.csv: "
                f"{some(found.image_id[wrong])}. Run 02 and 03 again with --overwrite."
            )
