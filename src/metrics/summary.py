"""The row that every table shows, and calibration."""

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from src.metrics.bins import bin_names
from src.metrics.outcomes import among_five, chunks, predicted
from src.metrics.scores import METRICS, SCORES, recalls_of


def calibration(
    logits: np.ndarray, labels: np.ndarray, bins: int = 15
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Expected calibration error (Guo et al. 2017) and the reliability diagram behind it.

    Returns ece, and per confidence bin: mean confidence, accuracy (NaN where empty), images.
    """
    return outcomes_of(logits, labels).calibration(labels, bins)


@dataclass(frozen=True)
class Outcomes:
    """Everything about some images that `summary` needs, so that their logits can go.

    predicted, among_five, surprise: as the functions above · confidence: the probability of the
    predicted class; [N] each
    """

    predicted: np.ndarray
    among_five: np.ndarray
    surprise: np.ndarray
    confidence: np.ndarray

    def rows(self, which: np.ndarray) -> "Outcomes":
        return Outcomes(*(array[which] for array in vars(self).values()))

    def calibration(self, labels: np.ndarray, bins: int = 15):
        """ECE and its diagram, see `calibration`."""
        right, confidence = self.predicted == labels, self.confidence
        which = np.minimum((confidence * bins).astype(int), bins - 1)
        size = np.bincount(which, minlength=bins)
        mean, share = (
            np.divide(np.bincount(which, x, bins), size, out=np.full(bins, np.nan), where=size > 0)
            for x in (confidence, right)
        )
        return float(np.nansum(size * np.abs(mean - share)) / size.sum()), mean, share, size

    def summary(self, labels: np.ndarray, bins: np.ndarray, calibrated=None) -> dict[str, float]:
        """See `summary`; `calibrated` is what `self.calibration` returned, if it is known."""
        found = {"top5": self.among_five, "nll": self.surprise}
        row = {
            name: SCORES[name](found.get(name, self.predicted), labels, len(bins))
            for name in METRICS
        }
        recall = recalls_of(self.predicted, labels, len(bins))
        for name in bin_names(bins):
            inside = recall[bins == name]
            known = inside[~np.isnan(inside)]
            row[name] = float(known.mean()) if len(known) else float("nan")
        ece = (calibrated or self.calibration(labels))[0]
        return row | {"nll": float(np.mean(self.surprise)), "ece": ece}


def outcomes_of(logits: np.ndarray, labels: np.ndarray) -> Outcomes:
    """One pass over the logits, in chunks."""
    parts = []
    for rows in chunks(*logits.shape):
        part, y = logits[rows], labels[rows]
        z = part.astype(np.float64)
        total = logsumexp(z, axis=1)
        surprised = total - np.take_along_axis(z, y[:, None], 1)[:, 0]
        confidence = np.exp(z.max(1) - total)
        parts.append(Outcomes(predicted(part), among_five(part, y), surprised, confidence))
    return pooled(parts)


def pooled(parts: list[Outcomes]) -> Outcomes:
    """Of several sets of images as one."""
    return Outcomes(*map(np.concatenate, zip(*(vars(p).values() for p in parts), strict=True)))


def summary(logits: np.ndarray, labels: np.ndarray, bins: np.ndarray) -> dict[str, float]:
    """The row that every table shows: the metrics, recall averaged over the classes of each bin
    (NaN where none of them has an image), NLL and calibration error."""
    return outcomes_of(logits, labels).summary(labels, bins)
