"""Cut a dataset to an artificial tail: the protocol of LDAM (Cao et al. 2019) and its followers."""

import numpy as np
import pandas as pd

from src.errors import UserError, some
from src.schema import Longtail


def tail_counts(profile: str, largest: int, num_classes: int, ratio: float) -> list[int]:
    """Images per class, class 0 first. Fractions are cut off, not rounded.

    exp: int(largest · μ^{c / (K − 1)}); step: the first K // 2 classes keep `largest`, the others
    int(largest · μ); μ = 1 / ratio. CIFAR-10 (largest = 5000), exp 1:100, has 12,406 in all.
    """
    mu = 1 / ratio
    if profile == "step":
        half = num_classes // 2
        return [largest] * half + [int(largest * mu)] * (num_classes - half)
    return [int(largest * mu ** (c / max(num_classes - 1, 1))) for c in range(num_classes)]


def cut_tail(train: pd.DataFrame, class_ids: list[str], longtail: Longtail) -> pd.DataFrame:
    """The rows of `train` (image_id, class_id, …) that stay.

    `class_ids` are in label order; `largest` is the size of the largest class. Each class is
    shuffled by itself, from its sorted ids, so that one class never changes another's draw.
    Errors: UserError when a class has fewer images than the profile asks for.
    """
    if longtail.profile is None:
        return train
    images = {c: g.sort_values("image_id") for c, g in train.groupby("class_id", sort=False)}
    largest = max(len(rows) for rows in images.values())
    counts = tail_counts(longtail.profile, largest, len(class_ids), longtail.ratio)
    _check(images, class_ids, counts, longtail)
    kept = []
    for label, (class_id, count) in enumerate(zip(class_ids, counts, strict=True)):
        rows = images[class_id]
        order = np.random.default_rng([longtail.seed, label]).permutation(len(rows))
        kept.append(rows.iloc[order[:count]])
    return pd.concat(kept).sort_values("image_id", kind="stable", ignore_index=True)


def _check(images: dict, class_ids: list[str], counts: list[int], longtail: Longtail) -> None:
    asked = f"longtail: {{profile: {longtail.profile}, ratio: {longtail.ratio:g}}}"
    if min(counts) < 1:
        raise UserError(
            f"{asked} leaves the smallest class without an image: the largest has {max(counts)}. "
            f"Choose a longtail.ratio of at most {max(counts)}."
        )
    short = [
        f"{class_id} has {len(images[class_id])} of {count}"
        for class_id, count in zip(class_ids, counts, strict=True)
        if len(images[class_id]) < count
    ]
    if short:
        raise UserError(
            f"{asked} starts from the largest class ({max(counts)} images) and cuts in the order "
            f"of the labels, but {len(short)} classes have fewer images than it asks for: "
            f"{some(short)}. Raise longtail.ratio, or set longtail.profile=null: data that have a "
            "tail already need no cut."
        )
