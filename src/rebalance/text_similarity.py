"""Text similarity: the nearest name, after a regression from features to names in closed form
(cf. Palatucci et al., NeurIPS 2009, "Zero-shot learning with semantic output codes").

    z_c = s · cos(P f / ‖f‖ + b, t_c)

t_c: the unit vector of the class's names minus their mean over the classes; P, b: ridge regression
on the training features, in which every class counts the same (`to_names`). Errs elsewhere than a
head that is trained to tell the classes apart, which is what 04 fuses for.
"""

import numpy as np
import torch

from src.config.heads import TextSimilarity
from src.initialisers.text import to_names
from src.logits import centred
from src.rebalance.features import FeatureSet


def fit_text(
    spec: TextSimilarity, data: FeatureSet, seed: int, device: torch.device
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the head's kind, `label_embedding`, and its projection [E, D], bias [E], text [K, E]
    and scale."""
    views = data.some_views(spec.views)
    features, labels = np.concatenate(views), np.tile(data.labels, len(views))
    projection, bias = to_names(features, labels, data.classes.text, spec.ridge)
    text = centred(data.classes.text).astype(np.float32)
    arrays = {"projection": projection, "bias": bias, "text": text}
    return "label_embedding", arrays | {"scale": np.float32(spec.scale)}
