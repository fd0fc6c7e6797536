"""Which images are worth a look: a few of each bin and kind, chosen by their final logits.

No draws: images are sorted by confidence, ties by id, and taken from an end or at equal distances.
"""

import numpy as np
import pandas as pd

from src.artifacts.evidence import KINDS, OUT_OF_FOLD, TEST
from src.artifacts.predictions import Predictions
from src.metrics import bin_names, outcomes_of

CHOSEN = ("image_id", "split", "kind", "label", "predicted", "probability", "fold")


def held_out_sample(found: Predictions, bins: np.ndarray, count: int) -> pd.DataFrame:
    """At most `count` out-of-fold images of each kind whose true class is in each bin.

    Confident and wrong: the surest mistakes, of the surer half of them · wrong: spread evenly over
    the other mistakes · right: over the right ones, both surest first. bins: [K] names. Returns the
    columns CHOSEN.
    """
    ranked = _ranked(found, OUT_OF_FOLD)
    parts = []
    for name in bin_names(bins):
        inside = ranked[bins[ranked["label"]] == name]
        wrong = inside[inside["predicted"] != inside["label"]]
        sure = wrong.head(min(count, -(-len(wrong) // 2)))
        found_kinds = (
            sure,
            _spread(wrong[len(sure) :], count),
            _spread(inside[inside["predicted"] == inside["label"]], count),
        )
        parts += _kinds(found_kinds, OUT_OF_FOLD)
    return pd.concat(parts)[list(CHOSEN)]


def unlabelled_sample(found: Predictions, bins: np.ndarray, count: int) -> pd.DataFrame:
    """At most `count` test images whose predicted class is in each bin: those with the highest and
    those with the lowest confidence, none twice; columns as of `held_out_sample`."""
    ranked = _ranked(found, TEST)
    parts = []
    for name in bin_names(bins):
        inside = ranked[bins[ranked["predicted"]] == name]
        sure = inside.head(min(count, -(-len(inside) // 2)))
        unsure = inside[len(sure) :].tail(count)[::-1]
        parts += _kinds((sure, unsure), TEST)
    return pd.concat(parts)[list(CHOSEN)]


def _ranked(found: Predictions, split: str) -> pd.DataFrame:
    """All images, the surest first."""
    outcomes = outcomes_of(found.logits, np.maximum(found.label, 0))
    table = pd.DataFrame(
        {
            "image_id": found.image_id.astype(object),
            "split": split,
            "label": found.label,
            "predicted": outcomes.predicted,
            "probability": outcomes.confidence,
            "fold": found.fold,
        }
    )
    return table.iloc[np.lexsort((found.image_id, -outcomes.confidence))]


def _spread(ranked: pd.DataFrame, count: int) -> pd.DataFrame:
    count = min(count, len(ranked))
    return ranked.iloc[np.arange(count) * len(ranked) // max(count, 1)]


def _kinds(parts: tuple[pd.DataFrame, ...], split: str) -> list[pd.DataFrame]:
    return [part.assign(kind=kind) for part, kind in zip(parts, KINDS[split], strict=True)]
