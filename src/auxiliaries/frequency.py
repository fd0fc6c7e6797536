"""Auxiliary frequency classifier: from the same features, which bin is the image's class in?

L = weight · CE(V f + a, bin(y)), with V: [bins, D] beside the classifier. It asks the features to
tell rare classes from frequent ones. From a report on TransFG for long-tailed food; src/rebalance
has the same on frozen features.
"""

import torch
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.auxiliaries.base import Auxiliary
from src.config.auxiliaries import Frequency
from src.data.dataset import Batch
from src.metrics import need_bins
from src.networks.base import Network, Output, Progress, mixed
from src.networks.heads import build_head


class FrequencyLoss(Auxiliary):
    """Mixed images have the bins of both labels.

    Errors: UserError when all classes are in one bin.
    """

    def __init__(self, config: Frequency, network: Network, classes: Classes):
        super().__init__()
        self.weight = config.weight
        count = classes.num_bins
        need_bins(count, "train.auxiliaries: frequency")
        self.head = build_head("linear", network.width, count, scale=1.0)
        self.register_buffer("bins", torch.from_numpy(classes.bins), persistent=False)

    def forward(self, output: Output, batch: Batch, progress: Progress) -> torch.Tensor:
        batch = batch.with_labels(lambda labels: self.bins[labels])
        return self.weight * mixed(_cross_entropy, self.head(output.features), batch)


def _cross_entropy(
    logits: torch.Tensor, bins: torch.Tensor, share: float | torch.Tensor = 1.0
) -> torch.Tensor:
    return (share * F.cross_entropy(logits, bins, reduction="none")).mean()
