"""What out-of-fold images say of the recall of classes that have few, and of more images.

A network that is scored out of fold saw s of a class's n images, n less what the fold holds out;
the networks that predict the test images saw all n together. Across classes c,

    logit(recall_c) = a + b log s_c + u_c,   b ~ N(b0, b0²),   u_c ~ N(0, OVER²)

which is a power law of the error (Hestness et al., 2017, report exponents up to about one half),
fitted by the binomial variance v_c of each class. The recall of a class is then between its own
images and the line, (y_c / v_c + line / OVER²) / (1 / v_c + 1 / OVER²) in logits: of two images
that are wrong one learns little. The slope across classes is also that of the bias towards frequent
ones, so what it says counts as much as simulated competitions found (calibrated.json).
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

PRIOR, OVER = 0.4, 0.8  # b0; what classes of one size differ by, in logits


@dataclass(frozen=True)
class Curve:
    """Of the classes with an out-of-fold image, [C] each. slope: b · logit: of the recall, with its
    variance · raw: recall of the images alone · images: how many"""

    slope: float
    logit: np.ndarray
    variance: np.ndarray
    raw: np.ndarray
    images: np.ndarray

    def more_images(self, share: np.ndarray, step: np.ndarray) -> float:
        """log of (errors after / errors before); share: of the classes in the test set, [C] · step:
        log of (images seen after / before), [C]"""
        after = 1 - expit(self.logit + max(self.slope, 0.0) * step)
        return float(np.log((share @ after) / (share @ (1 - expit(self.logit)))))

    def borrowed(self, share: np.ndarray) -> float:
        """log of (errors by the recalls in between / errors of the images alone)"""
        own = (self.images * (1 - self.raw) + 0.5) / (self.images + 1)
        return float(np.log((share @ (1 - expit(self.logit))) / (share @ own)))

    def doubt(self, share: np.ndarray) -> float:
        """Variance of log(errors) that draws from each class's own images do not have: what two
        images that are right agree on may still be chance."""
        p = expit(self.logit)
        whole = share**2 @ ((p * (1 - p)) ** 2 * self.variance)
        drawn = share**2 @ (self.raw * (1 - self.raw) / (self.images + 1))
        return float(max(whole - drawn, 0.0) / (share @ (1 - p)) ** 2)


def fit_curve(right: np.ndarray, labels: np.ndarray, seen: np.ndarray) -> Curve:
    """right: whether each out-of-fold image is predicted right, [N] · labels: [N] · seen: s of each
    image, [N]. Without differences in size the slope is the prior's."""
    _, which, n = np.unique(labels, return_inverse=True, return_counts=True)
    h = np.bincount(which, right)
    x = np.bincount(which, np.log(np.maximum(seen, 0.5))) / n
    y = np.log((h + 0.5) / (n - h + 0.5))
    v = 1 / (h + 0.5) + 1 / (n - h + 0.5)
    w = 1 / (v + OVER**2)
    x, middle = x - np.average(x, weights=w), np.average(y, weights=w)
    exact = 1 / PRIOR**2
    b = float((w @ (x * (y - middle)) + exact * PRIOR) / (w @ x**2 + exact))
    line, variance = middle + b * x, 1 / (1 / v + 1 / OVER**2)
    return Curve(b, variance * (y / v + line / OVER**2), variance, h / n, n.astype(float))
