"""How far a score may be off: standard errors by bootstrap over images, and shares' intervals.

Images are drawn with replacement and every score is taken of the draw (Efron, 1979); the standard
deviation over draws is the standard error, and a 95 % interval is 1.96 of them on either side. A
share of few images has Wilson's interval (1927) instead, which no draw can give: of 3 right out of
3 every resample is right, too.

    (p + z²/2n ± z √(p (1 − p) / n + z² / 4n²)) / (1 + z² / n)
"""

from collections.abc import Iterator

import numpy as np

from src.metrics.bins import bin_names
from src.metrics.gain import DRAWS, NORMAL
from src.metrics.scores import macro_f1_of, recalls_of
from src.metrics.summary import Outcomes
from src.metrics.table import metric_of


def standard_errors(
    found: Outcomes, labels: np.ndarray, bins: np.ndarray, *also: str
) -> dict[str, float]:
    """Of accuracy, balanced accuracy, macro F1, NLL, each bin's recall, and of the metrics `also`
    that look at an image at a time. labels: [N] · bins: [K] names. One draw at a time: memory is
    O(N + K)."""
    wanted = [m for m in dict.fromkeys(also) if not metric_of(m).wide]
    drawn = list(_scores(found, labels, bins, wanted))
    return {name: float(np.nanstd([row[name] for row in drawn], ddof=1)) for name in drawn[0]}


def _scores(
    found: Outcomes, labels: np.ndarray, bins: np.ndarray, wanted: list[str]
) -> Iterator[dict[str, float]]:
    """All scores of each draw; a bin that has no image in a draw is NaN there."""
    images, num = len(labels), len(bins)
    inside = {name: bins == name for name in bin_names(bins)}
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        times = np.bincount(rng.integers(images, size=images), minlength=images).astype(float)
        recall = recalls_of(found.predicted, labels, num, times)
        row = {metric: metric_of(metric).score(found.of(metric), labels, num, times)
               for metric in wanted}  # fmt: skip
        row |= {
            "accuracy": float(times @ (found.predicted == labels) / images),
            "balanced_accuracy": float(np.nanmean(recall)),
            "macro_f1": macro_f1_of(found.predicted, labels, num, times),
            "nll": float(times @ found.surprise / images),
        }
        yield row | {name: _mean(recall[which]) for name, which in inside.items()}


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def wilson(right: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of shares `right / total`, [...] each; 0 … 1 where there is nothing."""
    n = np.maximum(np.asarray(total, dtype=float), 1e-9)
    p, z2 = np.asarray(right) / n, NORMAL**2
    middle = p + z2 / (2 * n)
    half = NORMAL * np.sqrt(np.maximum(p * (1 - p), 0) / n + z2 / (4 * n**2))
    below = 1 + z2 / n
    return np.maximum((middle - half) / below, 0), np.minimum((middle + half) / below, 1)
