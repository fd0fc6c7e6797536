"""Cut a dataset to an artificial tail: the protocol of LDAM (Cao et al. 2019) and its followers."""

from bisect import bisect_left

import numpy as np
import pandas as pd

from src import cli
from src.config.data import Longtail
from src.errors import UserError


def tail_counts(profile: str, largest: int, num_classes: int, ratio: float) -> list[int]:
    """Images per class, class 0 first. Fractions are cut off, not rounded.

    exp: largest / ratio^{c / (K − 1)}; step: the first K // 2 classes keep `largest`, the others
    largest / ratio. CIFAR-10 (largest = 5000), exp 1:100, has 12,406 in all.
    """
    if profile == "step":
        half = num_classes // 2
        shares = [1.0] * half + [ratio] * (num_classes - half)
    else:
        shares = [ratio ** (c / max(num_classes - 1, 1)) for c in range(num_classes)]
    return [int(largest / share * (1 + 1e-12)) for share in shares]  # whole quotients stay whole


def cut_tail(train: pd.DataFrame, class_ids: list[str], longtail: Longtail) -> pd.DataFrame:
    """The rows of `train` (image_id, class_id, …) that stay.

    `class_ids` are in label order: class 0 keeps most images, as many as leave every class enough
    for its share. Of balanced classes that is N / K, as in the protocol; where it is less, because
    a class is too small, this is printed. Each class is shuffled by itself, from its sorted ids, so
    that one class never changes another's draw, only how much of it is kept.
    Errors: UserError when the smallest class would be left without an image.
    """
    if longtail.profile is None:
        return train
    images = {c: g.sort_values("image_id") for c, g in train.groupby("class_id", sort=False)}
    counts = _counts([len(images[c]) for c in class_ids], class_ids, longtail)
    kept = []
    for label, (class_id, count) in enumerate(zip(class_ids, counts, strict=True)):
        rows = images[class_id]
        order = np.random.default_rng([longtail.seed, label]).permutation(len(rows))
        kept.append(rows.iloc[order[:count]])
    return pd.concat(kept).sort_values("image_id", kind="stable", ignore_index=True)


def _counts(sizes: list[int], class_ids: list[str], longtail: Longtail) -> list[int]:
    """Images that each class keeps of the `sizes` there are."""
    profile, ratio = longtail.profile, longtail.ratio
    largest, mean = _largest(profile, sizes, ratio), sum(sizes) // len(sizes)
    counts = tail_counts(profile, largest, len(sizes), ratio)
    asked = f"longtail: {{profile: {profile}, ratio: {ratio:g}}}"
    if min(counts) < 1:
        while largest < ratio:  # a smaller ratio asks for more images in between
            ratio, largest = largest, _largest(profile, sizes, largest)
        raise UserError(
            f"{asked} leaves the smallest class without an image: the largest keeps {max(counts)}. "
            f"Choose a longtail.ratio of at most {ratio}."
        )
    if largest < mean:
        wanted = tail_counts(profile, largest + 1, len(sizes), ratio)
        rows = zip(class_ids, sizes, wanted, strict=True)
        short = next(f"class {c} has only {size}" for c, size, n in rows if size < n)
        cli.say(
            f"note: {asked} starts from {largest} images in the largest class instead of {mean} "
            f"(all images / classes), because {short}"
        )
    return counts


def _largest(profile: str, sizes: list[int], ratio: float) -> int:
    """What class 0 keeps: the most for which every class has enough images for its share."""

    def too_many(largest: int) -> bool:
        asked = tail_counts(profile, largest, len(sizes), ratio)
        return any(n > size for n, size in zip(asked, sizes, strict=True))

    return bisect_left(range(1, max(sizes) + 1), True, key=too_many)
