"""`auto`: keys of model and train that the data decides, and the rule of each.

`train.epochs: auto` in a YAML is short for `auto: [train.epochs]`. 02 decides when it starts, from
the folds that 01 wrote, says each value with its reason, and writes it to config.yaml; what is
trained further, or comes after, goes by what stands there. A rule sees the training images and the
config, never the machine, so that a config means the same everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SIZES = (32, 48, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448)  # pixels, of images
LARGEST = 224  # pixels, where nobody says that the machine has time for more
PRETRAINED, RANDOM = 12, 100  # epochs at least, by the weights that training starts from
STEPS = 320  # at least
BALANCED = ("balanced_accuracy", "macro_f1", "macro_auc")  # each class counts alike


@dataclass(frozen=True)
class Facts:
    """What rules go by. images: N · classes: K, those with images · ratio: of the largest class to
    the smallest · side: pixels, the shorter one of the median image · balanced: the metric, or the
    prior it is scored under, counts each class alike · pretrained: the network has seen images"""

    images: int
    classes: int
    ratio: float
    side: int
    balanced: bool
    pretrained: bool


Rule = Callable[[Facts], tuple[Any, str]]


def criterion(facts: Facts) -> tuple[Any, str]:
    name = "balanced_softmax" if facts.balanced else "cross_entropy"
    why = "each class counts alike" if facts.balanced else "scored as often as classes are there"
    return {"name": name}, f"{why}; the largest class has {facts.ratio:.0f} × the smallest"


def sampler(facts: Facts) -> tuple[str, str]:
    return "instance", "each photo once an epoch; what balance there is comes from the criterion"


def epochs(facts: Facts) -> tuple[int, str]:
    """Enough passes and enough steps: what is learned from few images is decided by the latter
    (benchmarks/RESULTS.md, "How long to train")."""
    batch, _ = batch_size(facts)
    each = max(1, facts.images // batch)  # steps of an epoch
    least = PRETRAINED if facts.pretrained else RANDOM
    found = max(least, -(-STEPS // each))
    weights = "pretrained" if facts.pretrained else "random"
    why = f"{weights} weights, {facts.images / facts.classes:.0f} images per class, {found * each} "
    return found, why + f"steps; {least} epochs and {STEPS} steps or more"


def batch_size(facts: Facts) -> tuple[int, str]:
    """Larger for more images, and eight steps an epoch or more, where there are images for it."""
    usual = 32 if facts.images < 5000 else 64 if facts.images < 20000 else 128
    eighth = 1 << (max(1, facts.images // 8).bit_length() - 1)  # a power of two
    found = min(usual, max(8, eighth))
    return found, f"{facts.images} images are {facts.images // found} steps an epoch"


def image_size(facts: Facts) -> tuple[int, str]:
    found = usual_size(facts.side, LARGEST)
    return found, f"the median image has {facts.side} pixels on its shorter side"


def usual_size(side: int, largest: int) -> int:
    """The largest of the usual sizes that images of this shorter side have, and that `largest`
    allows; of tiny images their own."""
    return max((size for size in SIZES if size <= min(side, largest)), default=max(side, 8))


RULES: dict[str, Rule] = {
    "model.image_size": image_size,
    "train.criterion": criterion,
    "train.sampler": sampler,
    "train.epochs": epochs,
    "train.batch_size": batch_size,
}


def take_auto(tree: dict) -> None:
    """Move keys whose value is `auto` to the list of them, in place."""
    found = []
    for key in RULES:
        section, _, name = key.partition(".")
        inside = tree.get(section)
        if isinstance(inside, dict) and inside.get(name) == "auto":
            del inside[name]
            found.append(key)
    if found:
        tree["auto"] = [*tree.get("auto", ()), *found]
