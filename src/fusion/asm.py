"""Assignment module, ASM: a small network that says, image by image, which of two heads to believe
(Sonseca, 2021, fyp-long-tail-recognition).

    t_i = 1[argmax z_i ≠ y_i and argmax z_d,i = y_i]      a = MLP(x), BCE against t, balanced
    hard    z̃ where a > o, z elsewhere
    soft    log((1 − p) softmax(z) + p softmax(z̃)) with p = σ(a − o)

x are the TOP largest logits of z, sorted, and, beyond the source, those of z_d, what each head says
of the other's class, and how many images (log) either class has; with them, as in the source, the
unit vector of the features. z̃ is z_d on the range of z. Sorted logits mean the same in every fold;
features need not, as each fold's network has its own. So folds are left out in turn, and whether
features belong in x, and the offset o, is what does best there. o = 0 is the source's p > ½: as
few t are 1 and the balanced loss makes them half, it switches too often. Where nothing beats the
start head on the folds left out, o is so large that it stands.

The source builds t on training images, of which the linear head has few wrong: here t is out of
fold. scikit-learn fits the MLP; kept are its arrays.
"""

import warnings
from typing import NamedTuple

import numpy as np
from scipy.special import expit, softmax

from src.fusion.pair import Paired, scaled
from src.fusion.step import Params, State, Unfit
from src.logits import unit
from src.metrics import OUTCOMES, SCORES, chunks, predicted, sign

TOP = 100
HIDDEN = 50
EPOCHS = 40
MOST = 8192  # images of t = 0 that are trained on
LEAST = 8  # images of t = 1, or there is nothing to learn
OFFSETS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # o, in log odds
NEVER = 1e6
TINY = np.finfo(np.float32).tiny


class Seen(NamedTuple):
    """Of n images: x [n, C], predictions of both heads, and labels, [n] each."""

    x: np.ndarray
    start: np.ndarray
    other: np.ndarray
    labels: np.ndarray

    @property
    def target(self) -> np.ndarray:
        return (self.start != self.labels) & (self.other == self.labels)


class ASM(Paired):
    def refuses(self, state: State):
        reason = super().refuses(state)
        if reason is None and self.section.features and state.features is None:
            reason = "needs features, none are stored; or set features: false"
        return reason

    def fit(self, states: list[State], labels: list[np.ndarray]):
        """Errors: Unfit where too few images are such that the other head alone is right."""
        head = self.other(states[0])
        inputs = (False, True) if self.section.features else (False,)
        found = {
            with_features: [
                _seen(s, y, head, with_features) for s, y in zip(states, labels, strict=True)
            ]
            for with_features in inputs
        }
        positive = sum(int(part.target.sum()) for part in found[False])
        if positive < LEAST:
            raise Unfit(
                f"of {sum(map(len, labels))} images {positive} are such that {head} alone is "
                f"right; it takes {LEAST}"
            )
        with_features, offset = self._choose(found, states[0].logits.shape[1])
        network = self._network(found[with_features])
        common = {"head": head, "routing": self.section.routing, "features": with_features}
        return common | {"offset": offset} | network

    def _choose(self, found: dict[bool, list[Seen]], num_classes: int) -> tuple[bool, float]:
        """Whether features help, and the offset, on folds left out in turn, by hard routing."""
        if self.section.offset is not None or len(found[False]) < 2:
            return False, self.section.offset or 0.0
        metric = self.config.metric
        if OUTCOMES[metric] is not predicted:
            metric = "balanced_accuracy"
        labels = np.concatenate([part.labels for part in found[False]])
        stays = np.concatenate([part.start for part in found[False]])
        best = (sign(metric) * SCORES[metric](stays, labels, num_classes), False, NEVER)
        for with_features, parts in found.items():
            a = np.concatenate(
                [
                    _scores(self._network([*parts[:k], *parts[k + 1 :]]), held.x)
                    for k, held in enumerate(parts)
                ]
            )
            other = np.concatenate([part.other for part in parts])
            for offset in OFFSETS[::-1]:
                routed = np.where(a > offset, other, stays)
                score = sign(metric) * SCORES[metric](routed, labels, num_classes)
                best = max(best, (score, with_features, offset), key=lambda one: one[0])
        return best[1:]

    def _network(self, parts: list[Seen]) -> Params:
        """An MLP on some folds as plain arrays; all t = 1 and at most MOST others."""
        from sklearn.exceptions import ConvergenceWarning  # slow, and most runs fit none
        from sklearn.neural_network import MLPClassifier

        x, t = (np.concatenate([getattr(p, key) for p in parts]) for key in ("x", "target"))
        rng = np.random.default_rng(self.section.seed)
        yes, no = np.flatnonzero(t), np.flatnonzero(~t)
        if not len(yes) or not len(no):  # of the folds that are left: nothing to tell apart
            return _constant(x.shape[1], -NEVER)
        rows = np.sort(np.concatenate([yes, rng.permutation(no)[:MOST]]))
        x, t = x[rows], t[rows]
        mean, deviation = x.mean(0), np.maximum(x.std(0), 1e-6)
        network = MLPClassifier(
            (HIDDEN,),
            alpha=self.section.weight_decay,
            batch_size=min(256, len(rows)),
            max_iter=EPOCHS,
            random_state=self.section.seed,
        )
        weights = np.where(t, 0.5 / t.mean(), 0.5 / (1 - t.mean()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # EPOCHS are enough, or too many
            network.fit((x - mean) / deviation, t, sample_weight=weights)
        (w1, w2), (b1, b2) = network.coefs_, network.intercepts_
        arrays = {
            "mean": mean,
            "deviation": deviation,
            "w1": w1,
            "b1": b1,
            "w2": w2[:, 0],
            "b2": b2,
        }
        return {key: np.asarray(value, np.float32) for key, value in arrays.items()}

    @staticmethod
    def apply(state: State, params):
        a = _scores(params, _inputs(state, params["head"], params["features"])) - params["offset"]
        z, other = state.logits, scaled(state, params["head"], "minmax")
        if params["routing"] == "hard":
            return np.where(a[:, None] > 0, other, z)
        p = expit(a)[:, None]
        mixed = (1 - p) * softmax(z, axis=1) + p * softmax(other, axis=1)
        return np.log(np.maximum(mixed, TINY))


def _constant(width: int, score: float) -> Params:
    """A network that says the same of every image."""
    zeros = np.zeros((width, 1), np.float32)
    common = {"mean": zeros[:, 0], "deviation": zeros[:, 0] + 1, "w1": zeros}
    return common | {"b1": zeros[0], "w2": zeros[0], "b2": np.float32([score])}


def _scores(network: Params, x: np.ndarray) -> np.ndarray:
    """a, [n]."""
    hidden = ((x - network["mean"]) / network["deviation"]) @ network["w1"] + network["b1"]
    return np.maximum(hidden, 0) @ network["w2"] + network["b2"][0]


def _seen(state: State, labels: np.ndarray, head: str, with_features: bool) -> Seen:
    """Once per state: every fold left out asks for it."""

    def make() -> tuple[np.ndarray, ...]:
        parts = []
        for rows in chunks(*state.logits.shape):
            part = state.rows(rows)
            x, other = _inputs(part, head, with_features), scaled(part, head, "none")
            parts.append((x, part.logits.argmax(1), other.argmax(1)))
        return tuple(np.concatenate(found) for found in zip(*parts, strict=True))

    return Seen(*state.once(("asm", head, with_features), make), labels)


def _inputs(state: State, head: str, with_features: bool) -> np.ndarray:
    """x, float32 [n, C]."""
    z, other = state.logits, scaled(state, head, "none")
    ours, theirs = z.argmax(1)[:, None], other.argmax(1)[:, None]
    counts = np.ones(z.shape[1]) if state.counts is None else np.maximum(state.counts, 1)
    parts = [
        _largest(z),
        _largest(other),
        np.take_along_axis(z, theirs, 1),
        np.take_along_axis(other, ours, 1),
        np.log(counts)[ours],
        np.log(counts)[theirs],
        *([unit(state.features)] if with_features else []),
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _largest(z: np.ndarray) -> np.ndarray:
    """The TOP largest of each row, the largest first."""
    m = min(TOP, z.shape[1])
    return -np.sort(-np.partition(z, -m, axis=1)[:, -m:], axis=1)
