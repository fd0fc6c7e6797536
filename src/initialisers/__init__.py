"""Head initialisers: where a classifier's rows point before training. One file each, no torch.

An initialiser is a function (its config section, `Known`) → directions [K, D], one per class, of
which only the direction counts; None leaves the fresh head as it is. 02 applies them to the heads
of a network (`model.head_init`), 03 to those it trains (`init`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from src.artifacts.dataset import Classes
from src.initialisers.class_means import class_means
from src.initialisers.text import RIDGE, text, to_names
from src.logits import unit


@dataclass(frozen=True)
class Known:
    """What an initialiser may look at, all of it of the images that are trained on.

    compute: makes the features [N, D], called once and only if they are asked for · labels: [N] ·
    to_text: the image projection [D, E] of a CLIP tower, None for other backbones
    """

    compute: Callable[[], np.ndarray]
    labels: np.ndarray
    classes: Classes
    to_text: Callable[[], np.ndarray | None] = lambda: None

    @cached_property
    def features(self) -> np.ndarray:
        return self.compute()

    def only(self, columns: tuple[int, int]) -> "Known":
        """The same of a part of the features, for the head of a branch."""
        part = lambda: self.features[:, slice(*columns)]  # noqa: E731
        return replace(self, compute=part, to_text=lambda: None)


INITIALISERS: dict[str, Callable] = {
    "random": lambda section, known: None,
    "class_means": class_means,
    "text": text,
}


def initial_arrays(section, known: Known, kind: str) -> dict[str, np.ndarray] | None:
    """What a head of this kind (linear, cosine, subcentre, label_embedding) starts from; None: as
    it was built.

    Heads of cosines get the unit directions w_c, a linear one s w_c / mean ‖f‖ and no bias, so that
    its logits begin at about s cos(f, w_c), with s the section's scale. A label_embedding head gets
    the regression from features to names.
    """
    if kind == "label_embedding" and section.name == "text":
        projection, bias = to_names(known.features, known.labels, known.classes.text, RIDGE)
        return {"projection": projection, "bias": bias}
    directions = INITIALISERS[section.name](section, known)
    if directions is None:
        return None
    weight = unit(directions).astype(np.float32)
    if kind != "linear":
        return {"weight": weight}
    length = float(np.linalg.norm(known.features, axis=1).mean())
    return {"weight": weight * (section.scale / length), "bias": np.zeros(len(weight), np.float32)}
