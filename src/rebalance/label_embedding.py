"""Label-embedding head on frozen features: the names of the classes stay where they are, and the
projection from features to names is trained with class-balanced sampling. Formula and sources stand
at `src.networks.heads.LabelEmbedding`; it starts from the regression of the head `text`.
"""

import numpy as np
import torch
from torch.nn import functional as F

from src.config.heads import LabelEmbedding as Spec
from src.networks.heads import LabelEmbedding
from src.rebalance.features import FeatureSet, initialise
from src.rebalance.sgd import train


def fit_label_embedding(
    spec: Spec, data: FeatureSet, seed: int, device: torch.device
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the head's kind, `label_embedding`, and its projection [E, D], bias [E], text [K, E]
    and scale."""
    torch.manual_seed(seed)
    head = LabelEmbedding(data.width, data.classes.text, spec.scale, spec.correct)
    initialise(head, spec, data)
    head.to(device)

    def loss(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(features), labels, label_smoothing=spec.smoothing)

    train(head, loss, data.batches(spec, seed, device), len(data.labels), spec)
    return head.kind, {name: tensor.cpu().numpy() for name, tensor in head.arrays().items()}
