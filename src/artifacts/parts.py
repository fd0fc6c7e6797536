"""What 04 and 06 do with fewer folds than there are (`--folds`), down to one.

What is fitted after training is fitted on some out-of-fold images and scored on others. With
several folds those are folds. The held-out images of a single one are dealt into parts instead, all
of a group (one photo, one specimen) into the same: no image is scored by what was fitted on it, as
ever, and the network has seen none of them.
"""

from pathlib import Path

import numpy as np

from src.artifacts.dataset import ALWAYS_TRAIN, INPUTS, Dataset
from src.artifacts.files import read_json
from src.artifacts.predictions import Predictions
from src.artifacts.work import MANIFEST
from src.errors import UserError

PARTS = 5
SCRIPT = "04_posthoc_calibrate.py"


def parts_of(dataset: Dataset, image_id: np.ndarray) -> np.ndarray:
    """Of held-out images [N] what stands for their fold where something is cross-fitted, [N]: the
    fold, or with a single one the part. Parts have as many groups as can be, of each class, too.

    Errors: UserError for a single fold with images of one group alone.
    """
    images = dataset.images.set_index("image_id")
    if len(dataset.folds) > 1:
        return images.loc[image_id, "fold"].to_numpy()
    held = dataset.held_out(dataset.folds[0]).sort_values(["label", "image_id"])
    groups = held["group_id"].where(held["group_id"] != "", "image " + held["image_id"])
    number = groups.drop_duplicates().reset_index(drop=True)  # class by class
    if len(number) < 2:
        raise UserError(
            f"{dataset.directory / 'folds.csv'}: fold {dataset.folds[0]} holds out images of one "
            "group alone, and what is fitted must be scored on others; train more folds"
        )
    part = dict(zip(number, number.index % PARTS, strict=True))
    of_image = groups.map(part).set_axis(held["image_id"])
    return of_image.loc[image_id].to_numpy()


def in_parts(folds: dict[int, Predictions], dataset: Dataset) -> dict[int, Predictions]:
    """Held-out predictions by fold as they are, or those of a single fold by part."""
    if len(folds) > 1:
        return folds
    (found,) = folds.values()
    part = parts_of(dataset, found.image_id)
    return {int(k): found.rows(part == k) for k in np.unique(part)}


def caveat(dataset: Dataset) -> str | None:
    """What has to be said of scores where some folds stand for all; None: nothing."""
    folds, every = dataset.folds, dataset.every_fold
    if len(folds) == len(every):
        return None
    fold = dataset.images["fold"]
    images, of = int(fold.isin(folds).sum()), int((fold != ALWAYS_TRAIN).sum())
    text = f"{_told(folds)[0].upper()}{_told(folds)[1:]} of {len(every)} alone: scores are of "
    text += f"{images} of {of} out-of-fold images, so less sure than those of all folds."
    if len(folds) == 1:
        text += " What is fitted is cross-fitted over parts of that fold: honest, with less to fit."
    return text


def check_posthoc(posthoc: Path, dataset: Dataset) -> list[int]:
    """Folds that 04 went by. Errors: UserError unless those that take part are among them."""
    facts = read_json(posthoc / MANIFEST, INPUTS)
    made = facts.get("folds", dataset.every_fold)  # older ones went by all
    if lacking := sorted(set(dataset.folds) - set(made)):
        numbers = " ".join(map(str, made))
        raise UserError(
            f"{posthoc}: made of {_told(made)} alone, without {_told(lacking)}. Run this script "
            f"with --folds {numbers}, too, or finish the others with 02 and 03 and run "
            f"`python {SCRIPT}` again."
        )
    return made


def _told(folds: list[int]) -> str:
    return ("fold " if len(folds) == 1 else "folds ") + ", ".join(map(str, folds))
