"""`ensemble.label_shift`: the class prior of the test images, found or imposed, if it would pay.

Nothing says out of fold what the test's prior is, so the estimate is judged where the truth is
known: out-of-fold images are drawn, as many as there are test images, with the prior that was found
(`match`: with that of the training images, which is then imposed), and everything is done with them
that is done with the test images. It is kept where

  1. the probabilities are calibrated out of fold (ECE; cross-fitted),
  2. the prior of the test images is further from training's than what is found of images drawn
     without any shift, 19 times of 20,
  3. on images drawn with the prior that was found, at least half of the way to it is found,
  4. bbse: the confusion matrix can be inverted, and A q fits the test's predictions as well as it
     fits those of the images drawn,
  5. the metric gains on those images, by the section `judge`: the mean over the draws, and as its
     standard error their spread, which is what a test set of this size would show.

`match` needs 5 alone: its prior is known.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.special import log_softmax

from src.config.judge import Judge
from src.fusion.shift import LEAST, bbse, blocks_of, confusion, corrected, distance, em, matched
from src.metrics import Gain, chunks, metric_of, outcomes_of

DRAWS = 20
CELLS = 2**25  # probabilities out of fold from which all is judged
ECE = 0.03  # beyond what calibrated probabilities show by chance
CONDITION = 100.0  # of the confusion matrix
MISFIT = 0.01  # total variation, beyond half as much again as by chance
LARGEST = 2048  # classes of a confusion matrix
EVEN = ("balanced_accuracy", "macro_auc")  # metrics to which the test's prior is nothing


@dataclass(frozen=True)
class Shift:
    """What is done to the log-probabilities of the test images: softmax(β z + b).

    method: em, bbse or match · kept: whether anything is done · reason: why · gain: expected ·
    prior: q [K] that was found or given · found: the diagnostics by name
    """

    method: str
    kept: bool
    reason: str
    beta: float = 1.0
    bias: np.ndarray | None = None
    gain: Gain = Gain()
    prior: np.ndarray | None = None
    found: dict[str, float] = field(default_factory=dict)

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Log-probabilities [M, K] float32; as they are unless it is kept."""
        if not self.kept:
            return logits
        out = np.empty(logits.shape, np.float32)
        for rows in chunks(*logits.shape):
            out[rows] = log_softmax(self.beta * logits[rows] + self.bias, axis=1)
        return out

    def facts(self) -> dict:
        """For the manifest; arrays go beside it (src/fusion/store.py)."""
        told = {"method": self.method, "kept": self.kept, "reason": self.reason}
        told |= {k: v for k, v in self.gain.named().items() if v == v} | {"found": self.found}
        if self.prior is not None:
            told["prior"] = self.prior
        return told | ({"beta": self.beta, "bias": self.bias} if self.kept else {})

    def __str__(self) -> str:
        return f"{self.method}, {'kept' if self.kept else 'dropped'}: {self.reason}"


@dataclass(frozen=True)
class _Sample:
    """Out-of-fold images: z [n, K], p [n, K] calibrated (cross-fitted), labels [n]."""

    z: np.ndarray
    p: np.ndarray
    labels: np.ndarray

    def drawn(self, rng, prior: np.ndarray, images: int) -> np.ndarray:
        """How often each is drawn, [n], when classes are to be as often as `prior` says; from a
        bootstrap sample, as the few images of a rare class are a sample themselves."""
        n = len(self.labels)
        there = rng.multinomial(n, np.full(n, 1 / n))
        size = np.bincount(self.labels, there, len(prior))
        weights = there * (prior / np.maximum(size, 1))[self.labels]
        return rng.multinomial(images, weights / weights.sum()).astype(float)

    def share(self, c: np.ndarray, num: int) -> np.ndarray:
        return np.bincount(self.labels, c, num) / c.sum()


def label_shift(
    method: str,
    oof: np.ndarray,
    labels: np.ndarray,
    fold: np.ndarray,
    test: np.ndarray,
    counts: np.ndarray,
    metric: str,
    rule: Judge,
    target: np.ndarray | None = None,
) -> Shift:
    """oof: log-probabilities [N, K], cross-fitted · labels, fold: [N] · test: [M, K] · counts: [K]
    training images of each class · target: [K], what `match` imposes"""
    prior = np.maximum(counts, 1) / np.maximum(counts, 1).sum()
    if method == "match":
        return _match(oof, labels, fold, test, prior, metric, rule, target)
    if metric in EVEN:
        why = f"{metric} counts every class the same, however many test images there are of it"
        return Shift(method, False, why)
    if method == "bbse" and len(prior) > LARGEST:
        why = f"a confusion matrix of {len(prior)} classes cannot be known; em has none"
        return Shift(method, False, why)
    sample = _sample(oof, labels, fold, prior, calibrate=True)
    beta, bias = corrected(sample.z, sample.labels, prior)
    estimate = _Estimate(method, sample, prior)
    q, misfit = estimate.of_test(test, beta, bias)
    gain, found = _judged(estimate, q, misfit, len(test), metric)
    reason = _fails(found, rule, gain)
    kept = reason is None
    told = (
        f"the test's class prior is {found['shift']:.2f} from training's (total variation; without "
        f"a shift up to {found['by chance']:.2f}), found to within {found['error']:.2f} on "
        f"out-of-fold images drawn so; expected gain {gain}"
    )
    bias = bias + np.log(np.maximum(q, LEAST)) - np.log(prior)
    return Shift(method, kept, reason or told, beta, bias, gain, q, found)


def _sample(oof, labels, fold, prior: np.ndarray, calibrate: bool) -> _Sample:
    """At most CELLS probabilities, the same images every time."""
    rows = np.arange(len(labels))
    if (most := max(1, CELLS // len(prior))) < len(rows):
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:most])
    z, y, folds = oof[rows], labels[rows], fold[rows]
    p = np.empty(z.shape, np.float32)
    several = len(np.unique(folds)) > 1
    for k in np.unique(folds):
        others = folds != k if several else folds == k
        fitted = (
            corrected(z[others], y[others], prior) if calibrate else (1.0, np.zeros(len(prior)))
        )
        p[folds == k] = np.concatenate([block for block, _ in blocks_of(z[folds == k], *fitted)()])
    return _Sample(z, p, y)


@dataclass(frozen=True)
class _Estimate:
    """em or bbse, on test images and on images drawn from the sample."""

    method: str
    sample: _Sample
    prior: np.ndarray

    def of_test(self, test: np.ndarray, beta: float, bias: np.ndarray) -> tuple[np.ndarray, float]:
        """q [K] and the misfit of bbse."""
        blocks = blocks_of(test, beta, bias)
        if self.method == "em":
            return em(blocks, self.prior), 0.0
        predicted = np.concatenate([p.argmax(1) for p, _ in blocks()])
        share = np.bincount(predicted, minlength=len(self.prior)) / len(predicted)
        return bbse(self.confusion(np.ones(len(self.sample.labels))), share)

    def of_drawn(self, rng, c: np.ndarray) -> tuple[np.ndarray, float]:
        """The same of images that count c [n] times; A as other images would give it."""
        if self.method == "em":
            seen = c > 0
            return em(lambda: [(self.sample.p[seen], c[seen])], self.prior), 0.0
        share = np.bincount(self.sample.p.argmax(1), c, len(self.prior)) / c.sum()
        n = len(c)
        return bbse(self.confusion(rng.multinomial(n, np.full(n, 1 / n))), share)

    def confusion(self, c: np.ndarray) -> np.ndarray:
        s = self.sample
        return confusion(s.p.argmax(1), s.labels, c, len(self.prior))


def _judged(
    estimate: _Estimate, q: np.ndarray, misfit: float, images: int, metric: str
) -> tuple[Gain, dict[str, float]]:
    sample, prior, rng = estimate.sample, estimate.prior, np.random.default_rng(0)
    chance, errors, misfits, gains, reached = [], [], [], [], []
    for _ in range(DRAWS):
        known = rng.multinomial(len(sample.labels), prior) / len(sample.labels)  # a sample, too
        c = sample.drawn(rng, known, images)
        chance.append(distance(estimate.of_drawn(rng, c)[0], prior))
        c = sample.drawn(rng, q, images)
        again, missed = estimate.of_drawn(rng, c)
        errors.append(distance(again, sample.share(c, len(q))))
        reached.append(distance(prior, sample.share(c, len(q))))
        misfits.append(missed)
        after = np.log(np.maximum(sample.p, LEAST)) + np.log(np.maximum(again, LEAST) / prior)
        gains.append(_difference(sample, after.astype(np.float32), c, metric))
    found = {
        "shift": distance(q, prior),
        "by chance": float(np.quantile(chance, 0.95)),
        "error": float(np.mean(errors)),
        "error without": float(np.mean(reached)),
        **_calibration(sample, rng),
    }
    if estimate.method == "bbse":
        a = estimate.confusion(np.ones(len(sample.labels)))
        found["condition"] = float(min(np.linalg.cond(a), 1e12))
        found |= {"misfit": misfit, "misfit by chance": float(np.max(misfits))}
    return Gain(float(np.mean(gains)), float(np.std(gains, ddof=1))), found


def _difference(sample: _Sample, after: np.ndarray, c: np.ndarray, metric: str) -> float:
    of = metric_of(metric)
    a, b = (
        of.score(of.outcome(z, sample.labels), sample.labels, z.shape[1], c * (len(c) / c.sum()))
        for z in (after, sample.z)
    )
    return of.sign * (a - b)


def _calibration(sample: _Sample, rng) -> dict[str, float]:
    """ECE, and what probabilities that are right show by chance."""
    z = np.log(np.maximum(sample.p, LEAST))
    outcomes = outcomes_of(z, sample.labels)
    confidence = outcomes.confidence
    by_chance = []
    for _ in range(DRAWS):
        right = rng.random(len(confidence)) < confidence
        labels = np.where(right, outcomes.predicted, -1)
        by_chance.append(outcomes.calibration(labels)[0])
    return {
        "ece": float(outcomes.calibration(sample.labels)[0]),
        "ece by chance": float(np.mean(by_chance)),
    }


def _fails(found: dict[str, float], rule: Judge, gain: Gain) -> str | None:
    """The first of the diagnostics that is not good, in words."""
    if found["ece"] > ECE + found["ece by chance"]:
        return f"out-of-fold probabilities stay uncalibrated: ECE {found['ece']:.3f}"
    if found["shift"] <= found["by chance"]:
        return (
            f"no shift is seen: the prior found is {found['shift']:.3f} from training's (total "
            f"variation), and {found['by chance']:.3f} is found where there is none"
        )
    if found.get("condition", 0) > CONDITION:
        return f"the confusion matrix cannot be inverted: condition number {found['condition']:.0f}"
    if found.get("misfit", 0) > MISFIT + 1.5 * found.get("misfit by chance", 0):
        return (
            f"no class prior explains the predictions: they are missed by {found['misfit']:.3f}, "
            f"where label shift leaves {found['misfit by chance']:.3f}; something else has changed"
        )
    if found["error"] > found["error without"] / 2:
        return (
            f"the prior is not recovered from images drawn with it: error {found['error']:.3f}, "
            f"without correction {found['error without']:.3f}"
        )
    fails = gain.fails(rule)
    return f"expected gain {gain} {fails}" if fails else None


def _match(oof, labels, fold, test, prior, metric, rule: Judge, target: np.ndarray) -> Shift:
    """Judged by imposing the training prior, as `target` is imposed on the test."""
    sample, gains = _sample(oof, labels, fold, prior, calibrate=False), []
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        c = sample.drawn(rng, prior, len(test))
        seen = c > 0
        bias = matched(lambda s=seen, c=c: [(sample.p[s], c[s])], prior)
        gains.append(_difference(sample, (sample.z + bias).astype(np.float32), c, metric))
    gain = Gain(float(np.mean(gains)), float(np.std(gains, ddof=1)))
    fails = gain.fails(rule)
    told = f"imposing the training prior on out-of-fold images drawn with it gains {gain}"
    bias = matched(blocks_of(test, 1.0, np.zeros(len(prior))), target)
    return Shift(
        "match", fails is None, told + (f" {fails}" if fails else ""), 1.0, bias, gain, target
    )
