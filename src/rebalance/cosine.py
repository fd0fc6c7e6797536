"""Cosine head that starts at the class means: z_c = s · cos(f, w_c).

At the start w_c is the l2-normalised mean of f / ‖f‖ over class c, so without training it is NCM
with a scale (cf. Gidaris and Komodakis, CVPR 2018; Kang et al., ICLR 2020, section 4.2); then w is
trained with class-balanced sampling. Norms cannot grow with a class's frequency: none are used.
"""

import numpy as np
import torch

from src.config.heads import CosineHead
from src.networks.heads import Cosine, build_head
from src.rebalance.features import FeatureSet
from src.rebalance.fit import fit_by_cross_entropy


def fit_cosine(
    spec: CosineHead, data: FeatureSet, seed: int, device: torch.device
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the head's kind, `cosine`, and its weight [K, D] and scale."""
    head: Cosine = build_head("cosine", data.width, data.num_classes, spec.scale)
    return fit_by_cross_entropy(head, spec, data, seed, device)
