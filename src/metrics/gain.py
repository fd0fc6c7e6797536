"""Is a difference between two scores real? Paired bootstrap over images."""

from typing import NamedTuple

import numpy as np

from src.config.judge import Judge
from src.metrics.table import metric_of
from src.metrics.target import importance

DRAWS = 200  # of the bootstrap
NORMAL = 1.96  # standard errors on either side of a 95 % interval


class Gain(NamedTuple):
    """How much better one score is than another, > 0 is better, and the standard error of that."""

    value: float = float("nan")
    noise: float = float("nan")

    @property
    def low(self) -> float:
        """Of the 95 % interval."""
        return self.value - NORMAL * self.noise

    @property
    def high(self) -> float:
        return self.value + NORMAL * self.noise

    def __str__(self) -> str:
        return gain_text(self.value, self.low, self.high)

    def named(self) -> dict[str, float]:
        """As tables and JSON have it."""
        return {"gain": self.value, "gain_low": self.low, "gain_high": self.high}

    def fails(self, rule: Judge) -> str | None:
        """Why what brought this gain is not kept, or None; the one rule of 04 and 06."""
        if not self.value > rule.min_gain:
            return f"is not above {rule.min_gain:g}"
        if not self.value > rule.standard_errors * self.noise:
            return f"is within noise: not above {rule.standard_errors:g} x {self.noise:.4f}"
        return None


def rule_text(rule: Judge) -> str:
    """The rule of the section `judge` in words."""
    return (
        f"Kept is what gains more than {rule.min_gain:g} and more than {rule.standard_errors:g} "
        f"standard errors of the gain, cross-fitted (paired bootstrap over the out-of-fold images, "
        f"{DRAWS} draws); in brackets the 95 % interval."
    )


def gain_text(value: float, low: float, high: float) -> str:
    """`+0.012 [+0.003, +0.021]`, without the interval where it is not known; empty for NaN."""
    if value != value:
        return ""
    return f"{value:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if low == low else "")


def paired_gain(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    metric: str,
    target: np.ndarray | None = None,
) -> Gain:
    """How much better outcomes `after` score than `before`, and the standard error of that:
    bootstrap over images, both scored on the same draws, always the same ones. target: [K] class
    prior under which they are scored (src/metrics/target.py), None: that of the images"""
    images, of = len(labels), metric_of(metric)

    def difference(drawn=None):
        a, b = (of.score(x, labels, num_classes, drawn) for x in (after, before))
        return of.sign * (a - b)

    rng = np.random.default_rng(0)
    draws = (
        np.bincount(rng.integers(images, size=images), minlength=images).astype(float)
        for _ in range(DRAWS)
    )
    draws = (importance(labels, target, drawn) for drawn in draws)
    if of.batched:
        found = difference(np.stack(list(draws)))
    else:
        found = [difference(drawn) for drawn in draws]
    return Gain(difference(importance(labels, target)), float(np.std(found, ddof=1)))
