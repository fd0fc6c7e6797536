"""How often each class is among unlabelled images, from their probabilities alone.

p(c | x) are probabilities of a model that is calibrated under the class prior π, q the prior of the
images. If only the prior has changed (label shift), p(x | c) is the same and q can be found.

EM        q_c ← [Σ_i p_ic r_c / Σ_k p_ik r_k + S π_c] / (M + S),  r = q / π
          (Saerens et al., Neural Computation 2002, eq. 2.9): the most likely q. S = K images as π
          says keep a class from vanishing because nothing was predicted as it.
BBSE      A q = μ,  A_ij: share of class j that is predicted as i, out of fold, μ_i: share of the
          images that is (Lipton et al., ICML 2018, section 4), here with q ≥ 0 by least squares.
matching  v_c ← v_c q_c / m_c,  m_c = 1/M Σ_i p_ic v_c / Σ_k p_ik v_k
          the bias log v under which the mean probability of each class is a given q: Sinkhorn's
          iteration (1967) on [M, K] with rows of sum 1 and columns of sum M q.

All three see images in blocks: p [n, K] and how often each counts, c [n].
"""

from collections.abc import Callable, Iterable

import numpy as np
from scipy.optimize import minimize_scalar, nnls
from scipy.special import softmax

from src.metrics import chunks

Block = tuple[np.ndarray, np.ndarray]  # p [n, K], c [n]
Blocks = Callable[[], Iterable[Block]]
ROUNDS, CLOSE = 200, 1e-4  # at most, and the change of a prior (total variation) that ends it
LEAST = 1e-12  # of a prior


def blocks_of(logits: np.ndarray, beta: float, bias: np.ndarray) -> Blocks:
    """softmax(β z + b) of logits [N, K] in chunks, made anew in each round: [N, K] is large."""

    def made() -> Iterable[Block]:
        for rows in chunks(*logits.shape):
            p = softmax(np.float32(beta) * logits[rows] + bias.astype(np.float32), axis=1)
            yield p, np.ones(len(p), np.float32)

    return made


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Total variation of two priors, 0 … 1."""
    return float(np.abs(a - b).sum() / 2)


def em(blocks: Blocks, prior: np.ndarray) -> np.ndarray:
    """q [K]. prior: π [K], positive, sum 1"""
    q, held = prior, len(prior) * prior
    for _ in range(ROUNDS):
        expected, images = _expected(blocks, q / prior)
        new = (expected + held) / (images + held.sum())
        if distance(new, q) < CLOSE:
            return new
        q = new
    return q


def matched(blocks: Blocks, target: np.ndarray) -> np.ndarray:
    """The bias [K] under which mean probabilities are `target` [K]."""
    target, v = np.maximum(target, LEAST), np.ones(len(target))
    for _ in range(ROUNDS):
        expected, images = _expected(blocks, v)
        mean = np.maximum(expected / images, LEAST)
        if distance(mean, target) < CLOSE:
            break
        v = v * target / mean
    return np.log(v) - np.log(v).mean()


def _expected(blocks: Blocks, factor: np.ndarray) -> tuple[np.ndarray, float]:
    """Σ_i c_i p_ic f_c / Σ_k p_ik f_k, [K], and Σ c."""
    total, images, f = np.zeros(len(factor)), 0.0, factor.astype(np.float32)
    for p, c in blocks():
        below = np.maximum(p @ f, 1e-30)  # [n]
        total += factor * (p.T @ (c / below))
        images += float(c.sum())
    return total, images


def confusion(predicted: np.ndarray, labels: np.ndarray, c: np.ndarray, num: int) -> np.ndarray:
    """A [K, K]; the column of a class without an image is as if all were right."""
    table = np.zeros((num, num))
    np.add.at(table, (predicted, labels), c)
    images = table.sum(0)
    table[:, images == 0] = np.eye(num)[:, images == 0]
    return table / np.where(images > 0, images, 1)


def bbse(a: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, float]:
    """q [K] and by how much A q misses μ, 0 … 1. a: A [K, K] · share: μ [K]"""
    q, _ = nnls(a, share)
    return q / max(q.sum(), LEAST), distance(a @ q, share)


def corrected(
    logits: np.ndarray, labels: np.ndarray, prior: np.ndarray
) -> tuple[float, np.ndarray]:
    """β and b [K] such that softmax(β z + b) is calibrated under `prior` [K] on labelled images: a
    temperature by likelihood, and a bias by which mean probabilities are the classes' shares
    (bias-corrected temperature scaling: Alexandari et al., ICML 2020). Logits that have lost their
    prior get it back. K images of `prior` hold the shares."""
    num, bias, beta = len(prior), np.zeros(len(prior)), 1.0
    share = (np.bincount(labels, minlength=num) + num * prior) / (len(labels) + num)

    def loss(log_beta: float) -> float:
        return sum(
            -float(np.log(np.maximum(p[np.arange(len(p)), y], 1e-30)).sum())
            for (p, _), y in zip(
                blocks_of(logits, np.exp(log_beta), bias)(), _split(logits, labels), strict=True
            )
        )

    for _ in range(3):  # each moves the other a little
        found = minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-3})
        beta = float(np.exp(found.x))
        bias = matched(blocks_of(logits, beta, np.zeros(num)), share)
    return beta, bias


def _split(logits: np.ndarray, labels: np.ndarray) -> Iterable[np.ndarray]:
    return (labels[rows] for rows in chunks(*logits.shape))
