"""Which class is taken for which, and what the images look like.

Pairs are directed (true class → the class it is taken for), because the typical long-tail error is
a rare class swallowed by a frequent neighbour, which a symmetric count would hide.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from src.artifacts.dataset import Dataset
from src.data.images import load_image
from src.metrics import wilson
from src.report.stages import Scored

THUMBNAIL = 104  # pixels, square


@dataclass(frozen=True)
class Confusion:
    """`wrong` of the `total` out-of-fold images of class `true` were taken for class `taken_for`.

    true, taken_for: labels · wrong_ids, typical_ids: image ids to show, most confident first
    """

    true: int
    taken_for: int
    wrong: int
    total: int
    wrong_ids: tuple[str, ...] = ()
    typical_ids: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        return self.wrong / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Of the rate, 95 %."""
        low, high = wilson(self.wrong, self.total)
        return float(low), float(high)


def worst_pairs(oof: Scored, data: Dataset, pairs: int = 8, examples: int = 4) -> list[Confusion]:
    """The pairs with the largest share of the true class's images, ties by label.

    A single image is no pattern: pairs with one wrong image count only where no pair has two.
    """
    k = data.num_classes
    total = np.bincount(oof.label, minlength=k)
    predicted = oof.outcomes.predicted
    missed = predicted != oof.label
    code, wrong = np.unique(oof.label[missed] * k + predicted[missed], return_counts=True)
    if (wrong > 1).any():
        code, wrong = code[wrong > 1], wrong[wrong > 1]
    true, taken_for = code // k, code % k
    order = np.lexsort((taken_for, true, -wrong / total[true]))[:pairs]
    return [
        Confusion(
            int(t),
            int(p),
            int(n),
            int(total[t]),
            _surest(oof, (oof.label == t) & (predicted == p), examples),
            _typical(oof, data, p, examples),
        )
        for t, p, n in zip(true[order], taken_for[order], wrong[order], strict=True)
    ]


def _typical(oof: Scored, data: Dataset, label: int, limit: int) -> tuple[str, ...]:
    """Images of a class: the surest right ones, then (rare classes) any others by id."""
    right = _surest(oof, (oof.label == label) & (oof.outcomes.predicted == label), limit)
    others = data.images.loc[data.images["label"] == label, "image_id"]
    return (*right, *[i for i in others if i not in right])[:limit]


def _surest(oof: Scored, chosen: np.ndarray, limit: int) -> tuple[str, ...]:
    """Ids of the chosen images with the highest confidence, ties by id."""
    rows = np.flatnonzero(chosen)
    order = np.lexsort((oof.image_id[rows], -oof.outcomes.confidence[rows]))[:limit]
    return tuple(str(i) for i in oof.image_id[rows[order]])


def thumbnail(path: str, side: int = THUMBNAIL) -> str | None:
    """The image's centre as a small JPEG in base64; None where the file is not there any more.

    Errors: UserError where it is damaged.
    """
    if not Path(path).is_file():
        return None
    image = Image.fromarray(load_image(path))
    tiny = min(image.size) < side / 2
    method = Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS
    image = ImageOps.fit(image, (side, side), method)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=82, optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
