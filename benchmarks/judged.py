"""What a short training may be held against a method: nothing.

A row of a method table is too short to judge where

- its training was short: in epochs, or in pixels of an image, less than the config that the method
  is added to asks for, or fewer epochs than the method was published with; from random weights
  these are the 200 of configs/cifar10_lt.yaml, and
- it is not ahead: of cross-entropy; of its baseline, which is the method without its own network,
  samples and auxiliaries (of GPaCo: balanced softmax; of RIDE: LDAM-DRW); and, where the gain over
  the same paper's cross-entropy is published, of that, but for the 1.5 points within which a number
  counts as repeated.

A gain at a short schedule is a gain there. A loss says that there was no time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from src.config.read import load_config
from src.config.schema import Config

TOO_SHORT = "too short to judge"
PUBLISHED_SCHEDULE = Path(__file__).parents[1] / "configs" / "cifar10_lt.yaml"
WITHIN = 1.5  # points: as the published figure
PUBLISHED_EPOCHS = {"paco": 400}  # where others have those of the config (Cui et al., TPAMI 2023)
OWN_PARTS = ("model.network", "train.second_sampler", "train.auxiliaries")  # keys, and below them
PLAIN = "ce"


class Method(Protocol):
    """settings: keys of the config over that of cross-entropy"""

    settings: dict


def epochs_for(whole: Config) -> int:
    """That a method needs which is added to a config."""
    published = load_config(PUBLISHED_SCHEDULE).train.epochs
    return whole.train.epochs if whole.model.pretrained else max(published, whole.train.epochs)


def is_short(trained: Config, whole: Config) -> bool:
    """whole: the config that a benchmark adds its methods to"""
    fewer = trained.train.epochs < epochs_for(whole)
    return fewer or trained.model.image_size < whole.model.image_size


def baseline(row: str, methods: Mapping[str, Method]) -> str:
    """The row without what the method brings of its own; cross-entropy where nothing is left."""
    name, _, extra = row.partition("/")
    rest = {k: v for k, v in methods[name].settings.items() if not k.startswith(OWN_PARTS)}
    found = next((other for other, m in methods.items() if m.settings == rest), PLAIN)
    found = f"{found}/{extra}".rstrip("/")
    return PLAIN if found == row else found


def judged(
    row: str,
    gains: Mapping[str, float],
    methods: Mapping[str, Method],
    short: bool,
    published: float | None = None,
) -> bool:
    """Whether the row of a table may be judged. gains: by row, over cross-entropy, in points ·
    published: the gain in its paper"""
    if not short or row == PLAIN:
        return True
    bars = [0.0, gains.get(baseline(row, methods), 0.0)]
    bars += [] if published is None else [published - WITHIN]
    return all(gains[row] > bar for bar in bars)


def difference(gain: float, noise: float, short: bool) -> str:
    """A cell, of shares: points ± their standard error, where they may be judged; empty for NaN."""
    if gain != gain:
        return ""
    return TOO_SHORT if short and gain <= 0 else f"{100 * gain:+.1f} ± {100 * noise:.1f}"
