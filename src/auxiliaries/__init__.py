"""Auxiliaries: losses beside the criterion, with weights of their own that only training needs.

One file each; `train.auxiliaries: [{name: …}]` chooses from the table. An auxiliary is a module
(the network's output for `batch.images`, batch, progress) → a number, its weight included.
"""

from torch import nn

from src.artifacts.dataset import Classes
from src.auxiliaries.frequency import FrequencyLoss

AUXILIARIES = {"frequency": FrequencyLoss}


def build_auxiliaries(sections: tuple, width: int, classes: Classes) -> nn.ModuleDict:
    """sections: `train.auxiliaries` · width: of the features, D"""
    return nn.ModuleDict({s.name: AUXILIARIES[s.name](s, width, classes) for s in sections})
