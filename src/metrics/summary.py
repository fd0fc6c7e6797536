"""The row that every table shows, and calibration."""

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import logsumexp

from src.metrics.bins import bin_names
from src.metrics.calibration import equal_width
from src.metrics.outcomes import among_five, chunks, predicted
from src.metrics.scores import METRICS, recalls_of
from src.metrics.table import LABELS, metric_of


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
    predicted class; [N] each · more: outcomes of other metrics by their text, [N], or [N, K] where
    a metric needs every image to score any
    """

    predicted: np.ndarray
    among_five: np.ndarray
    surprise: np.ndarray
    confidence: np.ndarray
    more: dict[str, np.ndarray] = field(default_factory=dict)

    def rows(self, which: np.ndarray) -> "Outcomes":
        facts, more = self.facts(), self.more.items()
        return Outcomes(*(array[which] for array in facts), {k: array[which] for k, array in more})

    def facts(self) -> tuple[np.ndarray, ...]:
        return self.predicted, self.among_five, self.surprise, self.confidence

    def of(self, metric: str) -> np.ndarray:
        """The outcome of a metric. Errors: KeyError when it was not asked for."""
        known = {"top5": self.among_five, "nll": self.surprise} | self.more
        return self.predicted if metric_of(metric).of == LABELS else known[metric]

    def score(self, metric: str, labels: np.ndarray, num_classes: int) -> float:
        return metric_of(metric).score(self.of(metric), labels, num_classes)

    def decided(self, scores: np.ndarray) -> "Outcomes":
        """As they are with other decisions, the largest of `scores` [N, K]."""
        return replace(self, predicted=scores.argmax(1))

    def calibration(self, labels: np.ndarray, bins: int = 15):
        """ECE and its diagram, see `calibration`."""
        return equal_width(self.confidence, self.predicted == labels, bins)

    def summary(
        self, labels: np.ndarray, bins: np.ndarray, *also: str, calibrated=None
    ) -> dict[str, float]:
        """See `summary`; `calibrated` is what `self.calibration` returned, if it is known."""
        names = dict.fromkeys((*METRICS, *also))
        row = {name: self.score(name, labels, len(bins)) for name in names}
        recall = recalls_of(self.predicted, labels, len(bins))
        for name in bin_names(bins):
            inside = recall[bins == name]
            known = inside[~np.isnan(inside)]
            row[name] = float(known.mean()) if len(known) else float("nan")
        ece = (calibrated or self.calibration(labels))[0]
        return row | {"nll": float(np.mean(self.surprise)), "ece": ece}


def outcomes_of(logits: np.ndarray, labels: np.ndarray, *also: str) -> Outcomes:
    """One pass over the logits, in chunks; with what the metrics `also` need, too."""
    asked = [metric_of(name) for name in also if name != "top5"]
    asked = [metric for metric in asked if metric.of != LABELS]
    parts = []
    for rows in chunks(*logits.shape):
        part, y = logits[rows], labels[rows]
        z = part.astype(np.float64)
        total = logsumexp(z, axis=1)
        surprised = total - np.take_along_axis(z, y[:, None], 1)[:, 0]
        confidence = np.exp(z.max(1) - total)
        more = {metric.text: metric.outcome(part, y) for metric in asked}
        parts.append(Outcomes(predicted(part), among_five(part, y), surprised, confidence, more))
    return pooled(parts)


def pooled(parts: list[Outcomes]) -> Outcomes:
    """Of several sets of images as one."""
    facts = map(np.concatenate, zip(*(p.facts() for p in parts), strict=True))
    return Outcomes(*facts, {k: np.concatenate([p.more[k] for p in parts]) for k in parts[0].more})


def summary(
    logits: np.ndarray, labels: np.ndarray, bins: np.ndarray, *also: str
) -> dict[str, float]:
    """The row that every table shows: the metrics, those of `also` that are others, recall
    averaged over the classes of each bin (NaN where none of them has an image), NLL and calibration
    error."""
    return outcomes_of(logits, labels, *also).summary(labels, bins, *also)
