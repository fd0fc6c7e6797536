"""Out-of-fold predictions of a stage, checked against the folds they claim to be held out from."""

from pathlib import Path

import numpy as np

from src.artifacts import MANIFEST, read_json
from src.errors import UserError, some
from src.tables import (
    Dataset,
    Predictions,
    check_same_folds,
    check_same_ids,
    load_predictions,
    stack,
)


def check_finished(directory: Path, dataset: Dataset, script: str) -> None:
    """Errors: UserError that names the folds that `script` has not finished."""
    unfinished = [k for k in dataset.folds if not (directory / f"fold{k}" / MANIFEST).is_file()]
    if unfinished:
        numbers = " ".join(map(str, unfinished))
        raise UserError(
            f"{directory}: folds {numbers} of {' '.join(map(str, dataset.folds))} are missing. "
            f"Run `python {script} --folds {numbers}` with the same --config first."
        )


def load_folds(directory: Path, dataset: Dataset, script: str) -> dict[int, Predictions]:
    """Predictions of every fold's held-out images, from `directory`/fold<k>/oof.npz.

    Errors: UserError when folds are not finished (names them and the command that makes them), were
    made from another folds.csv, or do not hold exactly the fold's images with their labels.
    """
    check_finished(directory, dataset, script)
    found = {}
    for fold in dataset.folds:
        path = directory / f"fold{fold}" / "oof.npz"
        check_same_folds(read_json(path.with_name(MANIFEST)), dataset, path)
        found[fold] = load_predictions(path, dataset.num_classes)
        check_held_out(found[fold], dataset, path, fold)
    return found


def load_oof(directory: Path, dataset: Dataset, script: str) -> Predictions:
    """The same of all folds as one, sorted by image_id."""
    parts = load_folds(directory, dataset, script)
    return stack([parts[fold] for fold in sorted(parts)])


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
