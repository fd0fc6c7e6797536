"""Nearest class mean (Kang et al., ICLR 2020, section 4.2). Nothing is trained.

Features, of the training images and of the query alike: un, f · l2n, f / ‖f‖ · cl2n, the unit
vector of f − μ with μ the mean over all training images. M_c: their mean over class c.
Logits: cos(f, M_c) · l2, −‖f − M_c‖² = 2 f · M_c − ‖M_c‖² − ‖f‖², whose last term is the same for
all classes of an image and is left out · dot, f · M_c. They rank alike only where all M_c are
equally long.

The authors' own choice is cl2n with the distance. The default here is l2n with the cosine, the
class means that fusion (04) and knowledge transfer compare with, too.
"""

import numpy as np
import torch

from src.config.heads import NCM
from src.logits import means_by_class, unit
from src.rebalance.features import FeatureSet


def fit_ncm(
    spec: NCM, data: FeatureSet, seed: int, device: torch.device
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the head's kind and arrays: `cosine` or `linear` where they can say it, otherwise
    `centred`."""
    views = data.some_views(spec.views)
    center = np.zeros(data.width, np.float32)
    if spec.features == "cl2n":
        center = np.mean([f.mean(0, dtype=np.float64) for f in views], axis=0).astype(np.float32)
    rows = (f if spec.features == "un" else unit(f - center) for f in views)  # one at a time
    means = sum(means_by_class(r, data.labels, data.num_classes) for r in rows) / len(views)
    if spec.distance == "cosine":
        if spec.features != "cl2n":
            return "cosine", {"weight": means, "scale": np.float32(1.0)}
        weight, bias = unit(means), np.zeros(len(means), np.float32)
    elif spec.distance == "dot":
        weight, bias = means, np.zeros(len(means), np.float32)
    else:
        weight, bias = 2 * means, -np.square(means).sum(1)
    if spec.features == "un":
        return "linear", {"weight": weight, "bias": bias}
    return "centred", {"weight": weight, "bias": bias, "center": center}
