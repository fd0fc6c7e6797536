"""How far confidences are from shares of right ones: calibration errors with several binnings.

    ECE = Σ_b n_b / N · |confidence_b − accuracy_b|

over bins b of the images by confidence. Equal width: Guo et al., ICML 2017 (eq. 3). Equal mass: as
many images in each bin, so that no bin rests on a handful (Nguyen & O'Connor, EMNLP 2015). By
class: each class's probability is binned over all images, and the error is the mean over classes
(Kull et al., NeurIPS 2019, classwise-ECE): it sees a class that is overrated without being
predicted. All are biased upwards by small samples.
"""

import numpy as np
from scipy.special import softmax

from src.metrics.bins import bin_names
from src.metrics.outcomes import chunks

Diagram = tuple[float, np.ndarray, np.ndarray, np.ndarray]


def equal_width(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> Diagram:
    """ECE, and per bin mean confidence, accuracy (NaN where empty) and images. confidence, right:
    [N]"""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    return _diagram(which, confidence, right, bins)


def equal_mass(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> Diagram:
    """The same with as many images in each bin, but that equal confidences stay together."""
    order = np.sort(confidence)
    edges = order[np.arange(1, bins) * len(order) // bins] if len(order) else order
    return _diagram(np.searchsorted(edges, confidence, side="right"), confidence, right, bins)


def _diagram(which, confidence, right, bins: int) -> Diagram:
    size = np.bincount(which, minlength=bins)
    mean, share = (
        np.divide(np.bincount(which, x, bins), size, out=np.full(bins, np.nan), where=size > 0)
        for x in (confidence, right)
    )
    error = np.nansum(size * np.abs(mean - share)) / max(size.sum(), 1)
    return float(error), mean, share, size


def classwise(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> np.ndarray:
    """The error of each class's probability over all images, [K]; the mean is classwise-ECE."""
    images, num = logits.shape
    told, true = np.zeros(num * bins), np.zeros(num * bins)
    for rows in chunks(images, num):
        p = softmax(logits[rows].astype(np.float64), axis=1)
        which = np.minimum((p * bins).astype(int), bins - 1) + bins * np.arange(num)  # [n, K]
        told += np.bincount(which.ravel(), p.ravel(), num * bins)
        own = which[np.arange(len(p)), labels[rows]]
        true += np.bincount(own, minlength=num * bins)
    return np.abs(told - true).reshape(num, bins).sum(1) / images


def by_bin(
    confidence: np.ndarray, right: np.ndarray, predicted: np.ndarray, bins: np.ndarray
) -> dict[str, tuple[float, float, float, int]]:
    """Of each frequency bin's predictions ECE (equal mass), mean confidence, accuracy and images;
    a bin as which nothing is predicted is left out. predicted: [N] · bins: [K] names"""
    found = {}
    for name in bin_names(bins):
        mine = bins[predicted] == name
        if count := int(mine.sum()):
            c, r = confidence[mine], right[mine]
            few = max(1, min(15, count // 10))  # ten images in a bin at least
            error = equal_mass(c, r, few)[0]
            found[name] = (error, float(c.mean()), float(r.mean()), count)
    return found
