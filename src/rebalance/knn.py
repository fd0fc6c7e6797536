"""k nearest neighbours among the training images (Wu et al., CVPR 2018, "Unsupervised feature
learning via non-parametric instance discrimination", section 3.4). Nothing is trained.

N_k(f): the k training images whose features have the largest cosines to f · y_i, N_c: their labels
and the images of class c.

    v_c = u_c Σ_{i in N_k(f), y_i = c} exp(cos(f, f_i) / T)        p_c = v_c / Σ_c v_c
    z_c = log((1 − ε) p_c + ε / K)

u_c = 1 / N_c where `balanced`: one neighbour of a class of three images says as much as ten of one
of thirty; otherwise 1, as published. ε keeps the logits of classes without a vote finite. Both
publications have T = 0.07, k = 200, or k = 20 in DINO (Caron et al., ICCV 2021).

The head is the training features themselves, as unit vectors in half precision: 2 N D bytes.
"""

import numpy as np
import torch

from src.config.heads import KNN
from src.logits import unit
from src.rebalance.features import FeatureSet


def fit_knn(
    spec: KNN, data: FeatureSet, seed: int, device: torch.device
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the head's kind, `knn`, and the arrays that `src.logits.knn_logits` takes."""
    views = data.some_views(spec.views)
    labels = np.tile(data.labels, len(views))
    votes = np.ones(data.num_classes)
    if spec.balanced:
        votes = 1 / np.maximum(np.bincount(data.labels, minlength=data.num_classes), 1)
        votes /= votes.mean()
    return "knn", {
        "bank": np.concatenate([unit(f).astype(np.float16) for f in views]),
        "labels": labels.astype(np.int64),
        "votes": votes.astype(np.float32),
        "k": np.int64(spec.k),
        "temperature": np.float32(spec.temperature),
        "smoothing": np.float32(spec.smoothing),
    }
