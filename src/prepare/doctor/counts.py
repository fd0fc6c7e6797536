"""What the images of each class say: bins and folds."""

import numpy as np

from src.config.data import Bins, Folds
from src.prepare.doctor.choice import Choice

LEAST = 0.1  # share of the classes that a bin should have


def bins(counts: np.ndarray) -> list[Choice]:
    """counts: images of each class, [K]. The usual thresholds where they divide these classes, else
    thirds of the classes at round numbers."""
    default = Bins()
    sizes = _sizes(counts, default.many, default.few)
    spread = f"classes have {counts.min()} … {counts.max()} images"
    if min(sizes) >= LEAST * len(counts):
        why = f"{spread}; the usual thresholds put {_said(sizes)}"
        return [Choice("bins.many", default.many, why), Choice("bins.few", default.few, "as above")]
    many, few = _thirds(counts)
    sizes = _sizes(counts, many, few)
    why = f"{spread}; with the usual thresholds a bin is nearly empty. Thirds put {_said(sizes)}"
    if counts.min() == counts.max():
        why = f"all classes have {counts[0]} images: there is no tail, and bins say nothing here"
    why += ". A class with more images than this is in `many`"
    return [
        Choice("bins.many", many, why),
        Choice("bins.few", few, "one with fewer than this is in `few`"),
    ]


def folds(counts: np.ndarray) -> Choice:
    """From the rarest class: each fold is to hold out some of every class, where that can be."""
    rarest, usual = int(counts.min()), Folds().k
    k = min(usual, max(3, rarest), int(counts.sum()))
    single = int((counts == 1).sum())
    why = f"the rarest class has {rarest} images"
    if rarest >= usual:
        why += ": each of five folds holds out one of every class"
    elif rarest >= 3:
        why += ": each fold holds out one of every class, and not more folds would"
    else:
        less = int((counts < 3).sum())
        why += f", and {less} classes have fewer than three: not every fold can score those"
    if single:
        why += f"; {single} classes with one image are always trained on and never scored"
    return Choice("folds.k", k, why)


def _thirds(counts: np.ndarray) -> tuple[int, int]:
    """`many` and `few` with as near to a third of the classes above and below as counts allow."""
    values, third = np.unique(counts), len(counts) / 3
    many = min(values, key=lambda v: abs(int((counts > v).sum()) - third))
    few = min(values[values <= many + 1], key=lambda v: abs(int((counts < v).sum()) - third))
    return int(many), int(few)


def _sizes(counts: np.ndarray, many: int, few: int) -> tuple[int, int, int]:
    large, small = int((counts > many).sum()), int((counts < few).sum())
    return large, len(counts) - large - small, small


def _said(sizes: tuple[int, int, int]) -> str:
    return f"{sizes[0]} classes in many, {sizes[1]} in medium, {sizes[2]} in few"
