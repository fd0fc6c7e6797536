"""Scores under another class prior than that of the images: importance weighting.

An image of class y counts ρ_y / π_y times, ρ the target prior and π the shares of the classes among
the images that are scored. Means over images (accuracy, top-k, NLL) become those under ρ, and what
is counted of predictions (the precision in F1, kappa) what it would be there. Balanced accuracy and
macro AUC average over classes and stay as they are. Classes without an image cannot be weighted:
the others stand for them.
"""

import numpy as np


def importance(
    labels: np.ndarray, target: np.ndarray | None, drawn: np.ndarray | None = None
) -> np.ndarray | None:
    """How often each image counts, [N], sum N; `drawn` without a target. labels: [N] · target: [K]
    · drawn: [N] how often each image is there, as in a bootstrap; None: each once"""
    if target is None:
        return drawn
    times = np.ones(len(labels)) if drawn is None else drawn
    images = np.bincount(labels, times, len(target))  # [K]
    weights = times * (target / np.where(images > 0, images, 1))[labels]
    total = weights.sum()
    return weights * (len(labels) / total) if total > 0 else times
