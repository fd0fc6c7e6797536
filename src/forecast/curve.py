"""The learning curve over the fold fraction: what the images that a fold holds out are worth.

A network that is scored out of fold saw s of a class's n images, n less what the fold holds out;
the networks that predict the test images saw all n together. Across classes c,

    logit(recall_c) = a + b log s_c + noise,   b ~ N(b0, b0²),   noise ~ N(0, OVER²)

which is a power law of the error (Hestness et al., 2017, report exponents up to about one half) and
here a regression weighted by the binomial variance of each class. The slope across classes is also
that of the bias towards frequent classes, so what it says counts as much as simulated competitions
found (calibrated.json).
"""

import numpy as np
from scipy.special import expit, logit

PRIOR, OVER = 0.4, 0.5  # b0; what classes of one size differ by, in logits


def slope(right: np.ndarray, labels: np.ndarray, seen: np.ndarray) -> float:
    """b. right: whether each out-of-fold image is predicted right, [N] · labels: [N] · seen: s of
    each image, [N]. Without differences in size it is the prior's."""
    classes, which = np.unique(labels, return_inverse=True)
    n = np.bincount(which).astype(float)
    h = np.bincount(which, right)
    x = np.bincount(which, np.log(np.maximum(seen, 0.5))) / n
    y = np.log((h + 0.5) / (n - h + 0.5))
    w = 1 / (1 / (h + 0.5) + 1 / (n - h + 0.5) + OVER**2)
    x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
    exact = 1 / PRIOR**2
    return float((w @ (x * y) + exact * PRIOR) / (w @ x**2 + exact)) if len(classes) > 1 else PRIOR


def log_change(
    right: np.ndarray, labels: np.ndarray, seen: np.ndarray, counts: np.ndarray, weight: np.ndarray
) -> float:
    """log of (errors with all n images / errors with s), < 0 where more images help.

    counts: n of each class, [K] · weight: how much each image counts, [N]
    """
    b = max(slope(right, labels, seen), 0.0)
    classes, which = np.unique(labels, return_inverse=True)
    total = np.bincount(which)
    p = (np.bincount(which, right) + 0.5) / (total + 1)  # recall, [classes]
    step = np.log(np.maximum(counts[labels], 1) / np.maximum(seen, 0.5))
    after = 1 - expit(logit(p[which]) + b * step)
    return float(np.log((weight @ after) / (weight @ (1 - p[which]))))
