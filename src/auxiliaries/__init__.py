"""Auxiliaries: losses beside the criterion, with weights of their own that only training needs.

One file each; `train.auxiliaries: [{name: …}]` chooses from the table. An auxiliary is a module
(the network's output for `batch.images`, batch, progress) → a number, its weight included.
"""

import numpy as np
from torch import nn

from src.auxiliaries.frequency import FrequencyLoss

AUXILIARIES = {"frequency": FrequencyLoss}


def build_auxiliaries(sections: tuple, width: int, bins: np.ndarray) -> nn.ModuleDict:
    """sections: `train.auxiliaries` · width: of the features, D · bins: number of each label's
    bin, [K]"""
    return nn.ModuleDict({s.name: AUXILIARIES[s.name](s, width, bins) for s in sections})
