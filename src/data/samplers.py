"""Which images (or cached features) an epoch sees.

A sampler is a function (labels [N], K, generator) → rows [N] of one epoch. The length is N for
every sampler, so that methods are compared at equal cost.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

Sampler = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def instance(labels: np.ndarray, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Every image once, shuffled: P(c) = N_c / N."""
    return rng.permutation(len(labels))


def by_class(
    labels: np.ndarray, num_classes: int, rng: np.random.Generator, *, power: float
) -> np.ndarray:
    """P(c) ∝ N_c^q, uniform within a class; q = 1 is instance, 0.5 square-root, 0 class-balanced
    sampling (Kang et al., ICLR 2020, eq. 1).

    Classes get whole numbers of draws that differ from N · P(c) by less than one; within a class,
    the images take turns in shuffled rounds, so none is drawn twice before all were drawn once.
    """
    counts = np.bincount(labels, minlength=num_classes).astype(float)
    weight = np.where(counts > 0, counts**power, 0.0)
    share = len(labels) * weight / weight.sum()
    draws = np.floor(share).astype(int)
    rest = len(labels) - draws.sum()
    if rest:
        fraction = share - draws
        draws[rng.choice(num_classes, rest, replace=False, p=fraction / fraction.sum())] += 1
    rows = np.argsort(labels, kind="stable")
    members = np.split(rows, np.cumsum(counts.astype(int))[:-1])
    chosen = [_rounds(m, n, rng) for m, n in zip(members, draws, strict=True) if n]
    return rng.permutation(np.concatenate(chosen))


def _rounds(members: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    rounds = -(-draws // len(members))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)])[:draws]


SAMPLERS: dict[str, Sampler] = {
    "instance": instance,
    "class_balanced": partial(by_class, power=0.0),
    "square_root": partial(by_class, power=0.5),
}


def epoch_order(
    sampler: str, labels: np.ndarray, num_classes: int, seed: int, epoch: int
) -> np.ndarray:
    """Rows of one epoch, a function of (seed, epoch) alone."""
    return SAMPLERS[sampler](labels, num_classes, np.random.default_rng((seed, epoch)))
