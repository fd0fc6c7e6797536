"""Class means: a classifier that begins as the nearest-class-mean one (cf. Shi et al., ICML 2024,
"Long-tail learning with foundation model: heavy fine-tuning hurts", section 4; Gidaris and
Komodakis, CVPR 2018).

w_c is the mean of f / ‖f‖ over the training images of class c, so no class begins behind because it
is rare.
"""

import numpy as np

from src import logits


def class_means(section, known) -> np.ndarray:
    """[K, D]. A class without a training image begins at the mean of all."""
    counts = np.bincount(known.labels, minlength=known.classes.num)
    if counts.min() > 0:
        return logits.class_means(known.features, known.labels, known.classes.num)
    rows, sums = logits.unit(known.features), np.zeros((len(counts), known.features.shape[1]))
    np.add.at(sums, known.labels, rows)
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], rows.mean(0))
