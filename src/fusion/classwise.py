"""Weights and biases of each class, fitted to out-of-fold images and shrunk towards the identity.

    z'_ic = Σ_j a_jc x_jic + b_c        x_0 = z, the start head's logits; x_1 … other logits
    J = Σ_i v_{y_i} [−log softmax(s z'_i)_{y_i}]
        + λ s²/2 Σ_c v_c [Σ_j σ_j² (a_jc − 1[j = 0])² + b_c²]

v_c = 1 / n_c of the class's out-of-fold images n_c, so that classes count equally, or 1. σ_j is the
spread of x_j within an image: a weight counts by what it moves, in units of logits. s is one
number, fitted with the rest and not shrunk: a temperature changes no prediction, is left to the
step of that name, and what it gains shall not look like a gain of the classes'. As λ stands beside
n_c images of weight v_c each, a class goes about n_c / (n_c + λ') of its way from the identity,
λ' ∝ λ, whatever v is: one of two images stays where it is.

λ is the one of a few that does best on folds left out of the fit in turn. Where none does better
than the identity there, the identity it is. L-BFGS (Byrd et al., 1995) with exact gradients.

The softmax runs over all K classes, but few of an image's say anything: kept are its SHORT highest
and its own, and for the sum of all others SAMPLE of them, drawn from a seed, each of which stands
for (K − SHORT) / SAMPLE. For K ≤ SHORT nothing is left out; at K = 8,142 it is 1/64 of the logits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from src.metrics import chunks

SHORT = 96
SAMPLE = 32
GROUPS = 3  # of folds, left out to choose λ
STEPS = 60  # of L-BFGS, at most


@dataclass(frozen=True)
class Shortlist:
    """What a fit needs of n images: m classes each.

    classes: int32 [n, m] · terms: x_j of those classes, float32 [J, n, m] · true: place of the own
    class among them [n] · stands: log of how many classes each of them stands for, float32 [n, m]
    """

    classes: np.ndarray
    terms: np.ndarray
    true: np.ndarray
    stands: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return self.classes[np.arange(len(self.true)), self.true]

    def parts(self) -> Iterator["Shortlist"]:
        for rows in chunks(*self.classes.shape):
            yield Shortlist(
                self.classes[rows], self.terms[:, rows], self.true[rows], self.stands[rows]
            )


def shortlist(terms: list[np.ndarray], rank: np.ndarray, labels: np.ndarray) -> Shortlist:
    """terms: x_j [n, K] · rank: [n, K], large for classes near the top · labels: [n]"""
    n, k = rank.shape
    classes, stands = np.tile(np.arange(k), (n, 1)), np.zeros((n, k), np.float32)
    if k > SHORT:
        top = np.argpartition(rank, -SHORT, axis=1)[:, -SHORT:]  # the lowest of them stands first
        absent = ~(top == labels[:, None]).any(1)
        top[absent, 0] = labels[absent]
        others = np.random.default_rng(0).integers(k, size=(n, SAMPLE))
        listed = np.zeros((n, k), bool)
        np.put_along_axis(listed, top, True, 1)
        new = ~np.take_along_axis(listed, others, 1)
        weight = (k - SHORT) / np.maximum(new.sum(1, keepdims=True), 1)
        stands = np.where(new, np.log(weight), -np.inf)
        classes = np.concatenate([top, others], axis=1)
        stands = np.concatenate([np.zeros(top.shape), stands], axis=1).astype(np.float32)
    found = np.stack([np.take_along_axis(x, classes, 1) for x in terms])
    true = (classes == labels[:, None]).argmax(1)
    return Shortlist(classes.astype(np.int32), found, true, stands)


def joined(parts: list[Shortlist]) -> Shortlist:
    return Shortlist(
        np.concatenate([p.classes for p in parts]),
        np.concatenate([p.terms for p in parts], axis=1),
        np.concatenate([p.true for p in parts]),
        np.concatenate([p.stands for p in parts]),
    )


def identity(terms: int, num_classes: int) -> np.ndarray:
    """[J + 1, K]: a_0 = 1, all other weights and the biases 0."""
    found = np.zeros((terms + 1, num_classes))
    found[0] = 1
    return found


def image_weights(labels: np.ndarray, num_classes: int, balanced: bool) -> np.ndarray:
    """v_c [K], 1 on average over images; of a class without images that of one image."""
    if not balanced:
        return np.ones(num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    return len(labels) / (counts > 0).sum() / np.maximum(counts, 1)


def fit_classwise(
    found: list[Shortlist],
    num_classes: int,
    strengths: tuple[float, ...],
    *,
    balanced: bool,
    bias: bool,
) -> tuple[np.ndarray, float | None]:
    """[J + 1, K] weights and biases, and the λ that was best; None: the identity was.

    found: one per fold; of a single fold nothing can be left out: the largest λ is taken ·
    bias: whether b is fitted, too
    """
    v = image_weights(np.concatenate([f.labels for f in found]), num_classes, balanced)
    strengths = sorted(strengths, reverse=True)
    strength = strengths[0] if len(found) == 1 else _strength(found, v, strengths, bias)
    neutral = identity(len(found[0].terms), num_classes)
    if strength is None:
        return neutral, None
    s = sharpness(found, v)
    theta, s = _minimum(found, v, strength, bias, s * neutral, s)
    return theta / s, strength


def _strength(found: list[Shortlist], v, strengths: list[float], bias: bool) -> float | None:
    """The λ of the smallest loss on folds left out of the fit, in up to GROUPS parts in turn; None:
    that of the identity is. The most careful λ comes first; the first that does worse ends it."""
    folds = range(len(found))
    held = [[found[i] for i in folds[g::GROUPS]] for g in range(min(GROUPS, len(found)))]
    others = [[found[i] for i in folds if i % GROUPS != g] for g in range(len(held))]
    sharp = [sharpness(part, v) for part in others]
    fits = [(s * identity(len(found[0].terms), len(v)), s) for s in sharp]

    def score() -> float:
        return sum(
            _loss(one, theta, v)[0]
            for part, (theta, _) in zip(held, fits, strict=True)
            for one in part
        )

    best, least = None, score()
    for strength in strengths:
        fits = [
            _minimum(part, v, strength, bias, *fit) for part, fit in zip(others, fits, strict=True)
        ]
        if (now := score()) >= least:
            break
        best, least = strength, now
    return best


def sharpness(found: list[Shortlist], v: np.ndarray) -> float:
    """s, between 1e-3 and 1e3: the likelihood has one maximum in log s."""
    one = identity(len(found[0].terms), len(v))

    def loss(log_s: float) -> float:
        return sum(_loss(f, np.exp(log_s) * one, v)[0] for f in found)

    bounds = (np.log(1e-3), np.log(1e3))
    end = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 5e-2})
    return float(np.exp(end.x))


def _minimum(found: list[Shortlist], v, strength: float, bias: bool, theta, s: float):
    """The θ = s [a; b] that minimises J / N, and s, looked for from those given on."""
    one = identity(len(found[0].terms), len(v))
    size = _spread(found)[:, None]  # [J + 1, 1]
    images = sum(len(f.true) for f in found)
    rows = len(one) if bias else len(one) - 1
    counts = np.bincount(np.concatenate([f.labels for f in found]), minlength=len(v))
    pull = np.sqrt(v * (strength + counts / 8))  # about the curvature of a class: all alike then

    def unpacked(flat: np.ndarray) -> tuple[np.ndarray, float]:
        """θ − s identity in units of logits, [J + 1, K], and s."""
        move = np.zeros_like(one)
        move[:rows] = flat[:-1].reshape(rows, -1) / pull
        return move, flat[-1] / np.sqrt(images)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        move, s = unpacked(flat)
        value, slope = 0.0, np.zeros_like(one)
        for images_of in found:
            part, gradient = _loss(images_of, s * one + move / size, v)
            value, slope = value + part, slope + gradient
        value += strength / 2 * float((v * move**2).sum())
        of_move = (slope / size + strength * v * move)[:rows] / pull
        of_s = (slope * one).sum() / np.sqrt(images)
        return value / images, np.append(of_move, of_s) / images

    begin = np.append(((theta - s * one) * size)[:rows] * pull, s * np.sqrt(images))
    options = {"maxiter": STEPS, "ftol": 1e-6, "gtol": 1e-9}
    end = minimize(objective, begin, jac=True, method="L-BFGS-B", options=options)
    move, s = unpacked(end.x)
    return s * one + move / size, float(s)


def _spread(found: list[Shortlist]) -> np.ndarray:
    """σ_j, and 1 for the bias, [J + 1]."""
    images = sum(len(f.true) for f in found)
    squares = sum(f.terms.var(axis=2, dtype=np.float64).sum(1) for f in found)
    return np.append(np.maximum(np.sqrt(squares / images), 1e-6), 1.0)


def _loss(found: Shortlist, theta: np.ndarray, v: np.ndarray) -> tuple[float, np.ndarray]:
    """Σ_i v_{y_i} NLL_i and its gradient [J + 1, K]."""
    value, gradient, k = 0.0, np.zeros_like(theta), theta.shape[1]
    a = theta.astype(np.float32)
    for part in found.parts():
        c, rows = part.classes, np.arange(len(part.true))
        z = a[-1][c] + part.stands  # [n, m]
        for j, x in enumerate(part.terms):
            z += a[j][c] * x
        top = z.max(1)
        p = np.exp(z - top[:, None])
        total = p.sum(1)
        share = v[part.labels]
        value += float(share @ (np.log(total) + top - z[rows, part.true]))
        p *= (share / total)[:, None].astype(np.float32)
        p[rows, part.true] -= share.astype(np.float32)
        for j, x in enumerate(part.terms):
            gradient[j] += np.bincount(c.ravel(), (p * x).ravel(), k)
        gradient[-1] += np.bincount(c.ravel(), p.ravel(), k)
    return value, gradient
