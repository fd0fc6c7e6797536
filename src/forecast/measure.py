"""What out-of-fold and test predictions say about the score of the submission.

Everything is in logarithms of the regret r, how far a score is from that of perfect predictions: a
change of networks or images multiplies the errors, whatever the metric. ε, half an image of the
test set, keeps the logarithm finite where nothing is wrong.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from src.forecast.curve import fit_curve
from src.fusion.shift import corrected, em
from src.metrics import Metric, metric_of

DRAWS, WIDE_DRAWS = 200, 40  # of the bootstrap; of metrics that need every probability
BELIEFS = 8  # draws of labels from probabilities
NUMBERS = 2**23  # probabilities that are looked at, so that it takes seconds
TERMS = ("ensemble", "learning curve", "rare classes", "confidence")


class Views(NamedTuple):
    """Scores of the same out-of-fold images in one view and in all that test images are seen in,
    and the standard error of the difference."""

    one: float
    all: float
    noise: float


@dataclass(frozen=True)
class Evidence:
    """oof: cross-fitted log-probabilities [N, K] of the submission · labels: [N] · seen: how many
    training images of its own class each image's network saw, [N] · counts: training images of each
    class, [K] · test: log-probabilities [M, K] · networks: of each experiment, whose mean they are
    · experiments: how many are combined, 1 / Σ w² with weights · metric: text of the config ·
    target: prior of the test images, [K], where it is known · views: where they are measured ·
    decided: [N, K] and [M, K] that the metric is given, where those are not oof and test"""

    oof: np.ndarray
    labels: np.ndarray
    seen: np.ndarray
    counts: np.ndarray
    test: np.ndarray
    networks: float
    experiments: float
    metric: str
    target: np.ndarray | None = None
    views: Views | None = None
    decided: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Measured:
    """oof: the score out of fold as it is · reweighted: with the classes as often as in the test
    set · center, noise: mean and standard deviation of log(r + ε) over draws of as many test images
    as there are · terms: by which center would change, [len(TERMS)] · views: change by these,
    measured · moved: of center, by a class prior that is estimated · best: score of perfect
    predictions · epsilon: ε"""

    oof: float
    reweighted: float
    center: float
    noise: float
    terms: np.ndarray
    views: float
    moved: float
    best: float
    epsilon: float


def measure(evidence: Evidence, seed: int = 0) -> Measured:
    e, rng, metric = evidence, np.random.default_rng(seed), metric_of(evidence.metric)
    answers = e.decided or (e.oof, e.test)
    outcome = metric.outcome(answers[0], e.labels)
    best, epsilon = perfect(metric, e), 0.5 / len(e.test)
    oof, test = _some(e, rng)
    train = _smooth(np.bincount(e.labels, minlength=len(e.counts)))
    beta, bias = corrected(e.oof[oof], e.labels[oof], train)
    p_oof, p_test = (softmax(beta * z + bias, axis=1) for z in (e.oof[oof], e.test[test]))
    target = e.target
    if target is None:
        target = em(lambda: [(p_test, np.ones(len(test)))], train)
    share = image_shares(e.labels, target, e.counts)  # [N], sum 1

    def log_regret(score: float) -> float:
        return float(np.log(max(metric.sign * (best - score), 0.0) + epsilon))

    size = DRAWS if not metric.wide else WIDE_DRAWS
    drawn = [draw(e.labels, share, len(e.test), rng) for _ in range(size)]
    if metric.batched:
        scores = metric.score(outcome, e.labels, len(e.counts), np.stack(drawn))
    else:
        scores = [metric.score(outcome, e.labels, len(e.counts), d) for d in drawn]
    regrets = np.array([log_regret(score) for score in scores])
    curve = fit_curve(answers[0].argmax(1) == e.labels, e.labels, e.seen)
    of_class, step = _per_class(e, share)
    p_oof, p_test = (under_prior(p, train, target) for p in (p_oof, p_test))
    of = share[oof] / share[oof].sum()
    terms = [
        (1 - 1 / e.networks) / e.experiments,
        curve.more_images(of_class, step),
        curve.borrowed(of_class),
        log_regret(believed(metric, answers[1][test], p_test, None, rng))
        - log_regret(believed(metric, answers[0][oof], p_oof, of, rng)),
    ]
    views, doubt = 0.0, 0.0
    if e.views is not None:
        views = log_regret(e.views.all) - log_regret(e.views.one)
        doubt = e.views.noise / float(np.exp(log_regret(e.views.all)))
    oof_score = metric.score(outcome, e.labels, len(e.counts))
    return Measured(
        oof=oof_score,
        reweighted=float(np.mean(scores)),
        center=float(regrets.mean()),
        noise=float(np.sqrt(regrets.var(ddof=1) + doubt**2 + curve.doubt(of_class))),
        terms=np.array(terms),
        views=views,
        moved=float(regrets.mean()) - log_regret(oof_score) if e.target is None else 0.0,
        best=best,
        epsilon=epsilon,
    )


def perfect(metric: Metric, e: Evidence) -> float:
    """The score of predictions that give the true class all the probability."""
    labels = e.labels[: max(1, NUMBERS // len(e.counts))]
    logits = np.zeros((len(labels), len(e.counts)), np.float32)
    logits[np.arange(len(labels)), labels] = 100
    return metric.score(metric.outcome(logits, labels), labels, len(e.counts))


def image_shares(labels: np.ndarray, target: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How often each out-of-fold image stands for a test image, [N], sum 1.

    What the test set has of classes without an out-of-fold image goes to the rarest that have one,
    a tenth of them: those are most alike.
    """
    images, mass = np.bincount(labels, minlength=len(counts)), target.astype(float).copy()
    present = np.flatnonzero(images)
    lost = mass[images == 0].sum()
    rare = present[np.argsort(counts[present], kind="stable")][: -(-len(present) // 10)]
    mass[rare] += lost / len(rare)
    share = (mass / np.maximum(images, 1))[labels]
    return share / share.sum()


def draw(labels: np.ndarray, share: np.ndarray, size: int, rng) -> np.ndarray:
    """How often each out-of-fold image is in a test set of `size`, [N].

    Twice random: what the images of a class say about the class (the Bayesian bootstrap; Rubin,
    1981), and which images the test set has.
    """
    weight = share * rng.exponential(size=len(share))
    of_class, drawn = (np.bincount(labels, w) for w in (share, weight))
    scale = np.divide(of_class, drawn, out=np.zeros_like(drawn), where=drawn > 0)
    p = weight * scale[labels]
    return rng.multinomial(size, p / p.sum()).astype(float)


def believed(
    metric: Metric, logits: np.ndarray, p: np.ndarray, share: np.ndarray | None, rng
) -> float:
    """The score if labels were drawn from probabilities p [n, K], of `logits` [n, K]; images drawn
    by `share` [n]."""
    cumulated, scores = np.cumsum(p, axis=1, dtype=np.float32), []
    for _ in range(BELIEFS):
        rows = rng.choice(len(p), len(p), p=share) if share is not None else np.arange(len(p))
        u = rng.random(len(rows), dtype=np.float32)[:, None] * cumulated[rows, -1:]
        labels = np.minimum((cumulated[rows] < u).sum(1), p.shape[1] - 1)
        z = logits[rows]
        scores.append(metric.score(metric.outcome(z, labels), labels, p.shape[1]))
    return float(np.mean(scores))


def _some(e: Evidence, rng) -> tuple[np.ndarray, np.ndarray]:
    """Rows of out-of-fold and of test images, all where they are few."""
    most = max(1, NUMBERS // len(e.counts))
    return tuple(
        np.arange(n) if n <= most else np.sort(rng.choice(n, most, replace=False))
        for n in (len(e.oof), len(e.test))
    )


def under_prior(p: np.ndarray, train: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Probabilities p [n, K] as they are where classes are as often as q says instead of train."""
    p = p * (q / train)
    return p / np.maximum(p.sum(1, keepdims=True), 1e-30)


def _per_class(e: Evidence, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the classes with an out-of-fold image: their share of the test set, and by how much the
    logarithm of the images grows that networks saw."""
    _, which, images = np.unique(e.labels, return_inverse=True, return_counts=True)
    step = np.log(np.maximum(e.counts[e.labels], 1) / np.maximum(e.seen, 0.5))
    return np.bincount(which, share), np.bincount(which, step) / images


def _smooth(images: np.ndarray) -> np.ndarray:
    return (images + 0.5) / (images + 0.5).sum()
