"""Which images (or cached features) an epoch sees.

A sampler is a distribution over classes, which may change with time; images of a class are equally
likely. Every epoch has N rows for every sampler, so that methods are compared at equal cost.
"""

from collections.abc import Callable

import numpy as np

# counts [K], time 0 … 1, exponent q → weights [K], in any unit; classes without an image get 0
ClassWeights = Callable[[np.ndarray, float, float], np.ndarray]


def powers(counts: np.ndarray, time: float, power: float) -> np.ndarray:
    """P(c) ∝ N_c^q: q = 1 is instance, 0.5 square-root, 0 class-balanced sampling (Kang et al.,
    ICLR 2020, eq. 1)."""
    return np.where(counts > 0, np.maximum(counts, 1) ** power, 0.0)


def progressive(counts: np.ndarray, time: float, power: float) -> np.ndarray:
    """P(c) = (1 − λ) N_c / N + λ / K, λ the time: from instance to class-balanced (Kang et al.,
    ICLR 2020, eq. 2). K counts the classes that have images."""
    balanced = counts.sum() * (counts > 0) / np.count_nonzero(counts)
    return (1 - time) * counts + time * balanced


def reversed_counts(counts: np.ndarray, time: float, power: float) -> np.ndarray:
    """P(c) ∝ N_max / N_c: the rarest class most often (Zhou et al., CVPR 2020, section 4.2)."""
    return np.where(counts > 0, counts.max() / np.maximum(counts, 1), 0.0)


WEIGHTS: dict[str, ClassWeights] = {
    "class_balanced": lambda counts, time, power: powers(counts, time, 0.0),
    "square_root": lambda counts, time, power: powers(counts, time, 0.5),
    "power": powers,
    "progressive": progressive,
    "reversed": reversed_counts,
}
SAMPLERS = ("instance", *WEIGHTS)


def epoch_order(
    sampler: str,
    labels: np.ndarray,
    num_classes: int,
    seed: int,
    epoch: int,
    epochs: int = 1,
    *,
    power: float = 0.5,
    stream: int = 0,
) -> np.ndarray:
    """Rows [N] of one epoch, a function of (seed, epoch, stream) alone.

    labels: [N] · epoch: 0-based, of `epochs` in all; time = epoch / (epochs − 1) goes from 0 to 1 ·
    power: q of the sampler `power` · stream: 1 for the second sampler of a training
    """
    rng = np.random.default_rng((seed, epoch, stream))
    if sampler == "instance":
        return rng.permutation(len(labels))
    counts = np.bincount(labels, minlength=num_classes).astype(float)
    time = epoch / max(epochs - 1, 1)
    return by_class(labels, counts, WEIGHTS[sampler](counts, time, power), rng)


def by_class(
    labels: np.ndarray, counts: np.ndarray, weight: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """N rows with P(c) ∝ weight [K], uniform within a class.

    Within a class, the images take turns in shuffled rounds, so none is drawn twice before all were
    drawn once.
    """
    draws = whole_draws(len(labels) * weight / weight.sum(), rng)
    rows = np.argsort(labels, kind="stable")
    members = np.split(rows, np.cumsum(counts.astype(int))[:-1])
    chosen = [_rounds(m, n, rng) for m, n in zip(members, draws, strict=True) if n]
    return rng.permutation(np.concatenate(chosen))


def whole_draws(share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers [K] that differ from `share` [K] by less than one, are `share` on average, and
    have its sum.

    Systematic sampling: the shares lie end to end in shuffled order, and a comb whose teeth are one
    apart is laid on them at random; each class gets the teeth on its share.
    """
    order = rng.permutation(np.flatnonzero(share))
    ends = np.cumsum(share[order])
    ends[-1] = round(ends[-1])
    draws = np.zeros(len(share), int)
    draws[order] = np.diff(np.floor(ends + rng.random()), prepend=0)
    return draws


def _rounds(members: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    rounds = -(-draws // len(members))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)])[:draws]
