"""What one network says of images: the logits of its heads, and those behind 04's steps."""

from pathlib import Path

import numpy as np

from src.artifacts.predictions import Predictions
from src.config.names import STAGE1
from src.errors import UserError
from src.fusion import apply_recipe
from src.fusion.step import Head
from src.logits import head_logits


def all_logits(
    found: Predictions,
    own: dict[str, Predictions],
    loaded: dict[str, Head],
    recipe: dict,
    counts: np.ndarray,
) -> dict[str, np.ndarray]:
    """Logits [N, K] of stage1, every head and posthoc, of one network.

    own: predictions of heads that changed the backbone's batch norm · loaded: heads by name ·
    counts: [K] images of each class, of all folds
    """
    logits = {STAGE1: found.logits}
    for name, (kind, arrays) in loaded.items():
        if name != STAGE1:
            logits[name] = head_logits(own.get(name, found).features, arrays, kind)
    f, columns = found.features, found.columns
    return logits | {"posthoc": apply_recipe(recipe, f, loaded, logits, counts, columns)}


def without_fold(recipe: dict, fold: int, origin: Path) -> dict:
    """The recipe that 04 chose on the other folds. Errors: UserError when `origin`, its file, does
    not say."""
    per_fold = recipe.get("per_fold", {})
    if recipe["steps"] and str(fold) not in per_fold:
        raise UserError(
            f"{origin}: does not say what was chosen without fold {fold}, which "
            "predict.keep_networks, predict.tta.measure and train.distill need; run 04 again with "
            "--overwrite"
        )
    return recipe | {"steps": per_fold.get(str(fold), [])}
