"""Label-embedding head on frozen features: the names of the classes stay where they are, and the
projection from features to names is trained with class-balanced sampling. Formula and sources stand
at `src.networks.heads.LabelEmbedding`; it starts from the regression of the head `text`.
"""

import numpy as np
import torch

from src.config.heads import LabelEmbedding as Spec
from src.networks.heads import LabelEmbedding
from src.rebalance.features import FeatureSet
from src.rebalance.fit import fit_by_cross_entropy


def fit_label_embedding(
    spec: Spec, data: FeatureSet, seed: int, device: torch.device
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the head's kind, `label_embedding`, and its projection [E, D], bias [E], text [K, E]
    and scale."""
    torch.manual_seed(seed)
    head = LabelEmbedding(data.width, data.classes.text, spec.scale, spec.correct)
    return fit_by_cross_entropy(head, spec, data, seed, device)
