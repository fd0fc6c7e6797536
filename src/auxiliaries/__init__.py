"""Auxiliaries: losses beside the criterion, with weights of their own that only training needs.

One file each; `train.auxiliaries: [{name: …}]` chooses from the table. An auxiliary is a module
(the network's output for `batch.images`, batch, progress) → a number, its weight included. It may
have something beside the network's pass (base.py).
"""

from torch import nn

from src.artifacts.dataset import Classes
from src.auxiliaries.frequency import FrequencyLoss
from src.auxiliaries.semantic_cls import SemanticCLS
from src.networks.base import Network

AUXILIARIES = {"frequency": FrequencyLoss, "semantic_cls": SemanticCLS}


def build_auxiliaries(sections: tuple, network: Network, classes: Classes) -> nn.ModuleDict:
    """sections: `train.auxiliaries` · network: whose loss they stand beside"""
    return nn.ModuleDict({s.name: AUXILIARIES[s.name](s, network, classes) for s in sections})
