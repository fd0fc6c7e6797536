"""Every metric that a config can name: what it needs of an image, and the score of that.

A metric is one line in NAMED, or a function of the text's numbers in FAMILIES; its name stands in
src/config/metric.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from src.config.metric import MetricText, parse, short_name
from src.config.own_metric import own_metric
from src.errors import UserError
from src.metrics import scores
from src.metrics.auc import macro_auc
from src.metrics.outcomes import clipped_surprise, predicted, probabilities, rank, surprise

LABELS, RANKING, PROBABILITIES = "labels", "ranking", "probabilities"


@dataclass(frozen=True)
class Metric:
    """of: what it judges: labels, ranking or probabilities · fact: (logits [n, K], labels [n]) →
    outcome [n]; [n, K] where `wide` · value: (outcome, labels, K, drawn) → number · batched:
    whether it takes many draws at once, [B, N]"""

    text: str
    of: str
    fact: Callable
    value: Callable
    lower_is_better: bool = False
    wide: bool = False
    batched: bool = False

    @property
    def short(self) -> str:
        return short_name(self.text)

    @property
    def sign(self) -> int:
        """1 where larger is better, else -1."""
        return -1 if self.lower_is_better else 1

    def outcome(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Errors: UserError for labels in the place of logits."""
        if np.ndim(logits) != 2:
            raise UserError(
                f"{self.short} judges {self.of}: it needs logits or log-probabilities [N, K] and "
                f"was given an array of shape {list(np.shape(logits))}, as labels have"
            )
        return self.fact(logits, labels)

    def score(self, outcome: np.ndarray, labels: np.ndarray, num_classes: int, drawn=None) -> float:
        """Errors: UserError for outcomes of another kind of metric."""
        if outcome.ndim != (2 if self.wide else 1):
            needs = "probabilities [N, K]" if self.wide else "one number per image, [N]"
            raise UserError(
                f"{self.short} needs {needs}, and was given an array of shape {list(outcome.shape)}"
            )
        if self.of == LABELS and outcome.dtype.kind not in "iu":
            raise UserError(
                f"{self.short} judges predicted labels, whole numbers [N], and was given "
                f"{outcome.dtype}: probabilities?"
            )
        return self.value(outcome, labels, num_classes, drawn)


def metric_of(text: str) -> Metric:
    """Errors: UserError for a text that is no metric, or an own one that is not there."""
    if text in NAMED:
        return NAMED[text]
    try:
        what = parse(text)
    except ValueError as error:
        raise UserError(f"metric: {error}") from None
    return FAMILIES[what.name](text, what)


def sign(name: str) -> int:
    """1 where larger is better, else -1; of a metric, or any other column of a table."""
    if name in LOWER_IS_BETTER:
        return -1
    return metric_of(name).sign if name.startswith("python:") else 1


def left_out(text: str, labels: np.ndarray, num_classes: int) -> str:
    """Which classes a metric cannot score, in words; empty where there are none."""
    lacking = num_classes - len(np.unique(labels))
    if text != "macro_auc" or not lacking:
        return ""
    return f"macro_auc leaves out {lacking} of {num_classes} classes, which have no image here"


# ---- families ----------------------------------------------------------------------------------


def _topk(text: str, what: MetricText) -> Metric:
    return Metric(text, RANKING, lambda z, y: rank(z, y) <= what.k, scores.mean)


def _mapk(text: str, what: MetricText) -> Metric:
    """With one true class, average precision at k is 1 / rank, and 0 beyond k."""

    def precision(logits, labels):
        place = rank(logits, labels)
        return np.where(place <= what.k, 1 / place, 0.0)

    return Metric(text, RANKING, precision, scores.mean)


def _f_beta(text: str, what: MetricText) -> Metric:
    def value(*args):
        return float(np.mean(scores.f_of_classes(*args, beta=what.beta)))

    return Metric(text, LABELS, predicted, value)


def _kappa(text: str, what: MetricText) -> Metric:
    """Labels are places on a scale, or `order` says the place of each."""

    def value(outcome, labels, num_classes, drawn=None):
        place = np.array(what.order or range(num_classes))
        if len(place) != num_classes:
            raise UserError(
                f"metric: kappa's order has {len(place)} places, but there are {num_classes} "
                "classes; expected one for each row of classes.csv, in its order"
            )
        return scores.kappa_of(place[outcome], place[labels], num_classes, drawn)

    return Metric(text, LABELS, predicted, value)


def _python(text: str, what: MetricText) -> Metric:
    own = own_metric(what)
    wide = own.takes == PROBABILITIES
    value = partial(_own_value, own.function, f"{what.file}:{what.function}")
    of, fact = (PROBABILITIES, probabilities) if wide else (LABELS, predicted)
    return Metric(text, of, fact, value, own.lower_is_better, wide)


def _own_value(function, where: str, outcome, labels, num_classes, drawn=None) -> float:
    """Errors: UserError where the function fails, or returns no finite number."""
    if drawn is not None:
        times = np.diff(np.floor(np.cumsum(drawn) + 0.5), prepend=0)  # parts add up to images
        rows = np.repeat(np.arange(len(labels)), times.astype(int))
        outcome, labels = outcome[rows], labels[rows]
    try:
        found = function(labels, outcome)
    except Exception as error:
        raise UserError(
            f"metric: {where} failed on {len(labels)} images of {len(np.unique(labels))} of "
            f"{num_classes} classes: {type(error).__name__}: {error}"
        ) from error
    number = np.asarray(found)
    if number.shape != () or number.dtype.kind not in "bifu" or not np.isfinite(number):
        raise UserError(f"metric: {where} returned {found!r}; expected one finite number")
    return float(number)


NAMED: dict[str, Metric] = {
    metric.text: metric
    for metric in (
        Metric("accuracy", LABELS, predicted, scores.accuracy_of),
        Metric("balanced_accuracy", LABELS, predicted, scores.balanced_accuracy_of),
        Metric("macro_f1", LABELS, predicted, scores.macro_f1_of),
        Metric("weighted_f1", LABELS, predicted, scores.weighted_f1_of),
        Metric("log_loss", PROBABILITIES, clipped_surprise, scores.mean, True),
        Metric("macro_auc", PROBABILITIES, probabilities, macro_auc, wide=True, batched=True),
        Metric("nll", PROBABILITIES, surprise, scores.mean, True),  # for calibration, no config's
    )
}
FAMILIES: dict[str, Callable[[str, MetricText], Metric]] = {
    "topk": _topk,
    "mapk": _mapk,
    "f_beta": _f_beta,
    "kappa": _kappa,
    "python": _python,
}
LOWER_IS_BETTER = ("ece", *(name for name, m in NAMED.items() if m.lower_is_better))


class _Every(dict):
    """One part of every metric by its text; those with numbers in it are made when asked for."""

    def __init__(self, part: str):
        super().__init__({text: getattr(metric, part) for text, metric in NAMED.items()})
        self.part = part

    def __missing__(self, text: str):
        return getattr(metric_of(text), self.part)


OUTCOMES, SCORES = _Every("outcome"), _Every("score")
