"""How a cost grows with the images N and the classes K, and what it is at sizes never measured."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

FLAT = 1.3  # what grows by less than this from end to end is start-up, its exponent would be noise
OFFSETS = 200


def exponent(sizes: np.ndarray, values: np.ndarray) -> float:
    """p of value = c + a · size^p: least squares of log(value − c) on log(size), with the offset
    c ≥ 0 (start-up) for which the values fit best, relatively. NaN where they hardly grow, or
    there are fewer than three sizes."""
    x, y = np.asarray(sizes, float), np.asarray(values, float)
    if len(np.unique(x)) < 3 or y.max() < FLAT * y.min():
        return float("nan")
    found = []
    for offset in np.linspace(0, y.min(), OFFSETS, endpoint=False):
        p, log_a = np.polyfit(np.log(x), np.log(y - offset), 1)
        fitted = offset + np.exp(log_a) * x**p
        found.append((float(np.square(np.log(fitted / y)).sum()), p))
    return float(min(found)[1])


@dataclass(frozen=True)
class Growth:
    """cost = start + N · per_image + K · per_class + N · K · per_pair, none below 0."""

    start: float
    per_image: float
    per_class: float
    per_pair: float

    def at(self, images: float, classes: float) -> float:
        terms = basis(np.array([images]), np.array([classes]))[0]
        return float(terms @ [self.start, self.per_image, self.per_class, self.per_pair])


def fit(images: np.ndarray, classes: np.ndarray, values: np.ndarray) -> Growth:
    """Non-negative least squares of relative errors over all points [P]. What grew faster than
    these terms shows in `exponent`, and would be underestimated here."""
    y = np.maximum(np.asarray(values, float), 1e-9)
    terms = basis(images, classes) / y[:, None]
    scale = np.maximum(np.abs(terms).max(0), 1e-300)  # terms differ by many powers of ten
    found = nnls(terms / scale, np.ones(len(y)))[0] / scale
    return Growth(*map(float, found))


def basis(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """[P, 4]: 1, N, K, N K."""
    n, k = np.asarray(images, float), np.asarray(classes, float)
    return np.stack([np.ones_like(n), n, k, n * k], axis=1)
