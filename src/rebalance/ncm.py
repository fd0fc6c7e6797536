"""Nearest class mean (Kang et al., ICLR 2020, section 4.2), with cosine similarity.

M_c = mean of f / ‖f‖ over the training images of class c; z_c = cos(f, M_c). Nothing is trained.
"""

import numpy as np
import torch

from src.logits import class_means
from src.rebalance.features import FeatureSet
from src.schema import NCM


def fit_ncm(
    spec: NCM, data: FeatureSet, seed: int, device: torch.device
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the head's kind, `cosine`, and its weight [K, D] and scale 1."""
    views = data.some_views(spec.views)
    means = sum(class_means(f, data.labels, data.num_classes) for f in views) / len(views)
    return "cosine", {"weight": means, "scale": np.float32(1.0)}
