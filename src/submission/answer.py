"""What is said of each test image: ids by rank, and probabilities that are fit to be written."""

from dataclasses import dataclass

import numpy as np

from src.config.submission import Submission
from src.errors import UserError
from src.metrics import chunks


@dataclass(frozen=True)
class Answer:
    """log_probabilities: [M, K], up to a constant per image · classes: class ids, [K] · keys: the
    section `submission` · flagged: [M], images that look like none of the classes; None where there
    is no unknown class"""

    log_probabilities: np.ndarray
    classes: list[str]
    keys: Submission
    flagged: np.ndarray | None = None

    @property
    def known(self) -> list[str]:
        """Class ids and, where there is one, that of the unknown class: [K] or [K + 1]."""
        return self.classes + ([] if self.flagged is None else [self.keys.unknown.id])

    def best(self, rows: np.ndarray, k: int) -> np.ndarray:
        """The k likeliest class ids of images `rows`, [n, k]; the smaller label of equals. The
        unknown class is first where an image is flagged, else where `unknown.place` puts it."""
        order = np.empty((len(rows), min(k, len(self.classes))), np.int64)
        for part in chunks(len(rows), len(self.classes)):
            z = self.log_probabilities[rows[part]]
            best = z.argmax(1)[:, None] if k == 1 else np.argsort(-z, axis=1, kind="stable")[:, :k]
            order[part] = best
        ids = np.array(self.classes, dtype=object)[order]
        if self.flagged is None:
            return ids
        place = self.keys.unknown.place or k + 1
        at = np.where(self.flagged[rows], 0, place - 1)
        shifted = np.concatenate([ids, ids[:, -1:]], axis=1)  # one more, to be pushed out
        number = np.arange(shifted.shape[1])
        source = number[None] - (number[None] > at[:, None])
        found = np.take_along_axis(shifted, source, axis=1)
        found[number[None] == at[:, None]] = self.keys.unknown.id
        return found[:, :k]

    def probabilities(self, rows: np.ndarray, columns: list[str]) -> np.ndarray:
        """[n, len(columns)] of these class ids, each row summing to 1 (with as many decimals as
        `decimals` asks for, exactly), none below `clip`.

        Classes that have no column are left out, and the others share the whole.
        Errors: UserError when `clip` times the columns is 1 or more.
        """
        z = self.log_probabilities[rows].astype(np.float64)
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        if self.flagged is not None:
            unknown = np.where(self.flagged[rows], self.keys.unknown.probability, 0.0)[:, None]
            p = np.concatenate([p * (1 - unknown), unknown], axis=1)
        at = {class_id: i for i, class_id in enumerate(self.known)}
        p = p[:, [at[c] for c in columns]]
        total = p.sum(1, keepdims=True)
        p = np.where(total > 0, p / np.where(total > 0, total, 1), 1 / len(columns))
        p = clipped(p, self.keys.clip)
        return p if self.keys.decimals is None else rounded(p, self.keys.decimals)


def clipped(p: np.ndarray, low: float) -> np.ndarray:
    """p: [n, C], rows summing to 1. Values below `low` become it, and the others are scaled to make
    room, until none is below; the sums stay 1.

    Errors: UserError when there is no room: C · low ≥ 1.
    """
    if not low:
        return p
    if low * p.shape[1] >= 1:
        raise UserError(
            f"submission.clip: {low} for each of {p.shape[1]} classes is 1 or more; lower it"
        )
    small = p < low
    while True:
        rest = np.where(small, 0, p)
        room = 1 - low * small.sum(1, keepdims=True)
        out = np.where(small, low, rest * (room / rest.sum(1, keepdims=True)))
        more = small | (out < low)
        if (more == small).all():
            return out
        small = more


def rounded(p: np.ndarray, decimals: int) -> np.ndarray:
    """p: [n, C], rows summing to 1, in units of 10^-decimals: all are rounded down, and the units
    that are left go to the largest remainders, the first of equals. The sums stay 1."""
    unit = 10.0**decimals
    whole = np.floor(p * unit + 1e-6)  # 0.29 · 100 is a little below 29
    left = np.rint(unit - whole.sum(1)).astype(int)
    rank = np.argsort(np.argsort(whole - p * unit, axis=1, kind="stable"), axis=1, kind="stable")
    return (whole + (rank < left[:, None])) / unit
