"""Criteria: (logits [N, K], labels [N]) → a number. `train.criterion.name` chooses from the table.

One file each; `src/losses/base.py` says what they have in common.
"""

from src.artifacts.dataset import Classes
from src.config.schema import Config
from src.losses.balanced_softmax import BalancedSoftmaxLoss
from src.losses.base import Criterion
from src.losses.class_balanced import ClassBalancedLoss, effective_weights
from src.losses.cross_entropy import CrossEntropyLoss
from src.losses.focal import FocalLoss
from src.losses.lade import LADELoss
from src.losses.ldam import LDAMLoss
from src.losses.margins import ArcFaceLoss, CosFaceLoss
from src.losses.seesaw import SeesawLoss

CRITERIA: dict[str, type[Criterion]] = {
    "arcface": ArcFaceLoss,
    "balanced_softmax": BalancedSoftmaxLoss,
    "class_balanced": ClassBalancedLoss,
    "cosface": CosFaceLoss,
    "cross_entropy": CrossEntropyLoss,
    "focal": FocalLoss,
    "lade": LADELoss,
    "ldam": LDAMLoss,
    "logit_adjusted": BalancedSoftmaxLoss,
    "seesaw": SeesawLoss,
}


def build_criterion(config: Config, classes: Classes) -> Criterion:
    """The criterion of `train`, with deferred class weights if asked."""
    section, deferred = config.train.criterion, config.train.deferred
    scale = config.model.cosine_scale if config.model.head != "linear" else 1.0
    criterion = CRITERIA[section.name](section, classes, scale)
    if deferred.weights:
        criterion.weigh(effective_weights(classes.counts, deferred.beta), deferred.start)
    return criterion
