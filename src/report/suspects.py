"""Images whose label is probably wrong, and images unlike their class, from out-of-fold outcomes.

Wrong labels, after confident learning (Northcutt, Jiang & Chuang, JAIR 2021). With p the
out-of-fold probabilities, y the given labels and

    t_j = mean of p_j over the images of class j        what the class is usually given

an image of class y is a suspect if the class that it is taken for, j ≠ y, is given its usual
confidence, p_j ≥ t_j: this image looks as much like class j as images of j do. Suspects are ranked
by log(p_j / t_j) − log(p_y / t_y), largest first. Thresholds by class keep rare classes, which get
small probabilities even when right, from being all suspects. A class without out-of-fold images
has the mean threshold.

Outliers: images far from everything that a head compares them with (1 − cosine to the nearest class
mean or training image, of ncm, knn, cosine …). The distance d, less its fold's median, is compared
with the median of the image's class, drawn to 0 by SHRINK images, in units of 1.4826 · MAD over all
images. Above FAR, and at most PER_CLASS of a class, an image is listed.

Nothing here needs logits: N numbers a stage are enough, also for 437,000 images of 8,142 classes.
"""

import numpy as np
import pandas as pd

from src.artifacts.dataset import Dataset
from src.report.stages import Scored

TINY = 1e-12
SHRINK = 5  # images of prior for a class's median distance
FAR = 3.5  # robust standard deviations (Iglewicz & Hoaglin, 1993)
PER_CLASS = 5
COLUMNS = ["kind", "rank", "image_id", "path", "class_id", "class_name", "suggested_class_id",
           "suggested_class_name", "p_given", "p_suggested", "score"]  # fmt: skip


def wrong_labels(stage: Scored, num_classes: int) -> pd.DataFrame:
    """row (of `stage`), given, suggested (labels), p_given, p_suggested, score, the most suspect
    image first; ties by image_id."""
    given, seen = stage.label, stage.outcomes
    p_given = np.exp(-seen.surprise)
    images = np.bincount(given, minlength=num_classes)
    total = np.bincount(given, p_given, num_classes)
    usual = np.where(images > 0, total / np.maximum(images, 1), p_given.mean())  # t, [K]
    other, p_other = seen.predicted, seen.confidence
    rows = np.flatnonzero((other != given) & (p_other >= usual[other]))
    y, j = given[rows], other[rows]
    score = np.log(p_other[rows] / (usual[j] + TINY)) - np.log(
        (p_given[rows] + TINY) / (usual[y] + TINY)
    )
    found = {"row": rows, "given": y, "suggested": j}
    found |= {"p_given": p_given[rows], "p_suggested": p_other[rows], "score": score}
    order = np.lexsort((stage.image_id[rows], -score))
    return pd.DataFrame(found).iloc[order].reset_index(drop=True)


def outliers(stage: Scored, fold: np.ndarray, num_classes: int) -> pd.DataFrame:
    """row, given, score, farthest first; empty where the stage has no distances. fold: [N]"""
    if stage.distance is None:
        return pd.DataFrame({"row": [], "given": [], "score": []}).astype({"row": int})
    d = stage.distance.astype(float)
    d = d - pd.Series(d).groupby(fold).transform("median").to_numpy()
    by_class = pd.Series(d).groupby(stage.label)
    middle, images = by_class.transform("median"), by_class.transform("size")
    apart = (d - (middle * images / (images + SHRINK))).to_numpy()
    scale = 1.4826 * np.median(np.abs(apart - np.median(apart)))
    score = apart / max(scale, TINY)
    table = pd.DataFrame({"row": np.arange(len(d)), "given": stage.label, "score": score})
    order = np.lexsort((stage.image_id, -score))
    table = table.iloc[order][score[order] > FAR]
    return table[table.groupby("given").cumcount() < PER_CLASS].reset_index(drop=True)


def suspects(stages: dict[str, Scored], data: Dataset) -> pd.DataFrame:
    """Both kinds as one table with COLUMNS: wrong labels by the last stage, outliers by the first
    stage that has distances."""
    last = list(stages.values())[-1]
    far = next((s for s in stages.values() if s.distance is not None), last)
    fold = data.images.set_index("image_id")["fold"].loc[far.image_id].to_numpy()
    tables = {
        "label": (last, wrong_labels(last, data.num_classes)),
        "outlier": (far, outliers(far, fold, data.num_classes)),
    }
    parts = [_named(kind, stage, found, data) for kind, (stage, found) in tables.items()]
    return pd.concat(parts, ignore_index=True)


def _named(kind: str, stage: Scored, found: pd.DataFrame, data: Dataset) -> pd.DataFrame:
    """With ids, paths and names in the place of numbers."""
    classes = data.classes
    rows = found["row"].to_numpy()
    table = pd.DataFrame({"kind": kind, "rank": np.arange(1, len(found) + 1)})
    table["image_id"] = stage.image_id[rows]
    paths = data.images.set_index("image_id")["path"]
    table["path"] = paths.loc[table["image_id"]].to_numpy()
    for which, before in (("given", ""), ("suggested", "suggested_")):
        for column in ("class_id", "class_name"):
            known = which in found
            values = classes[column].to_numpy()[found[which].to_numpy(int)] if known else ""
            table[before + column] = values
    for column in ("p_given", "p_suggested", "score"):
        table[column] = found[column].round(4) if column in found else ""
    return table[COLUMNS]
