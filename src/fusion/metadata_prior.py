"""A class prior for each image, by what is known of it beside its pixels (country, month, habitat).

With x and the columns m independent given the class, p(c | x, m) ∝ p(c | x) p(c | m) / π_c (Mac
Aodha et al., ICCV 2019, "Presence-only geographical priors for fine-grained image classification",
eq. 2), here with a strength s_t for each table t of src/fusion/metadata.py:

    z'_c = z_c + Σ_t s_t / β · [log p_t(c | m) − log q_t(c | m)]
    β, γ, s ≥ 0 = argmin Σ_n −log softmax(β z + γ log π + Σ_t s_t [log p_t − log q_t])[y_n]

β and γ stand for logits that are too sure, or from which the prior was taken; they are let go. The
images are out of fold in both ways: for the network, and for the counts, which for one fold are
those of the other folds. A table whose absence costs less than EVIDENCE nats is left out, the least
useful first: a column without information gets no strength.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import chdtri

from src.errors import UserError, some
from src.fusion.likelihood import likelihood
from src.fusion.metadata import Columns, Table, tables
from src.fusion.pool import Pool
from src.fusion.step import State, Step

EVIDENCE = chdtri(1, 0.01) / 2  # nats; of tables that say nothing 1 in 100 reaches it
MOST = 2.0  # strength
CELLS = 2**24  # logits from which the strengths, a handful of numbers, are fitted


class MetadataPrior(Step):
    """Params {"tables": of each that is used its columns, strength, values and, as a sparse matrix
    [V + 1, K], what it adds}."""

    def columns(self):
        return list(self.section.columns or self.config.data.columns)

    def refuses(self, state: State):
        if lacking := sorted(set(self.columns()) - state.columns.keys()):
            return f"the predictions carry no columns {some(lacking)}; run 02 and 03 again"
        return "needs the classes' counts, none are given" if state.counts is None else None

    def fit(self, states: list[State], labels: list[np.ndarray]):
        names = self.columns()
        counts = np.maximum(states[0].counts, 1)
        prior = counts / counts.sum()
        told = [{name: s.columns[name] for name in names} for s in states]
        kept, strength = _strengths(_sampled(states, told, labels, prior), prior)
        found = tables(_joined(told), np.concatenate(labels), prior)
        return {"tables": [_plain(found[t], s) for t, s in zip(kept, strength, strict=True)]}

    @staticmethod
    def apply(state: State, params):
        logits = state.logits.copy()
        for tree in params["tables"]:
            table = _table(tree, state.logits.shape[1])
            if lacking := sorted(set(table.columns) - state.columns.keys()):
                raise UserError(
                    f"the columns {some(lacking)} are needed by the step metadata_prior, and "
                    f"folds.csv or test.csv has only {some(sorted(state.columns))}; name them in "
                    "data.columns and run 01 again"
                )
            logits += table.of(state.columns)
        return logits


def _sampled(states, told: list[Columns], labels, prior) -> Pool:
    """Logits and, of each table, what it says of images that it did not count; of a sample of the
    images, as members of a pool."""
    if len(states) == 1:  # no other fold: its two halves
        halves = np.arange(len(labels[0])) % 2 == 0
        parts = [(states[0].logits, told[0], labels[0], half) for half in (halves, ~halves)]
    else:
        parts = [
            (s.logits, columns, y, np.ones(len(y), bool))
            for s, columns, y in zip(states, told, labels, strict=True)
        ]
    share = CELLS / (sum(map(len, labels)) * len(prior))
    members, truth = [], []
    for i, (logits, columns, y, mine) in enumerate(parts):
        if len(states) == 1:
            counted, classes = {n: v[~mine] for n, v in columns.items()}, y[~mine]
        else:
            counted = _joined([c for j, c in enumerate(told) if j != i])
            classes = np.concatenate([y for j, y in enumerate(labels) if j != i])
        at = np.flatnonzero(mine)
        at = at[:: max(1, round(1 / share))]
        some_of = {name: values[at] for name, values in columns.items()}
        said = [table.of(some_of) for table in tables(counted, classes, prior)]
        members.append([logits[at], *said])
        truth.append(y[at])
    return Pool(
        [np.concatenate(m) for m in zip(*members, strict=True)], np.concatenate(truth), "nll"
    )


def _strengths(pool: Pool, prior: np.ndarray) -> tuple[list[int], list[float]]:
    """Numbers of the tables that are used, and s_t / β of each."""
    kept = list(range(len(pool.members) - 1))
    whole, found = _fitted(pool, kept, prior)
    if _fitted(pool, [], prior)[0] - whole < EVIDENCE:
        return [], []
    while True:
        without = [_fitted(pool, [t for t in kept if t != out], prior) for out in kept]
        least = int(np.argmin([loss for loss, _ in without]))
        if without[least][0] - whole >= EVIDENCE:
            break
        kept.pop(least)
        whole, found = without[least]
    return kept, (found[2:] / found[0]).tolist()


def _fitted(pool: Pool, used: list[int], prior: np.ndarray) -> tuple[float, np.ndarray]:
    """The least negative log-likelihood in nats, and β, γ, s of the tables `used`."""
    part = Pool([pool.members[0], *(pool.members[1 + t] for t in used)], pool.labels, "nll")
    log_prior, images = np.log(prior), len(pool.labels)
    every = np.ones(images, bool)

    def objective(x: np.ndarray):
        weight = np.repeat(np.append(x[0], x[2:])[:, None], len(prior), 1)  # [1 + tables, K]
        loss, by_weight, by_bias = likelihood(part, every, every * 1.0, weight, x[1] * log_prior)
        by_member = by_weight.sum(1)
        return loss, np.concatenate([by_member[:1], [by_bias @ log_prior], by_member[1:]])

    bounds = [(1e-3, None), (None, None), *[(0, MOST)] * len(used)]
    start = np.concatenate([[1.0, 0.0], np.full(len(used), 0.5)])
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return found.fun * images, found.x


def _joined(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _plain(table: Table, strength: float) -> dict:
    """As it stands in posthoc.json and .npz."""
    added = table.times(strength).added
    return {
        "columns": list(table.columns),
        "strength": round(strength, 4),
        "values": table.values,
        "added": added.data,
        "label": added.indices.astype(np.int32),
        "starts": added.indptr.astype(np.int64),
    }


def _table(tree: dict, num_classes: int) -> Table:
    """What `_plain` wrote."""
    shape = (len(tree["values"]) + 1, num_classes)
    added = csr_array((tree["added"], tree["label"], tree["starts"]), shape=shape)
    return Table(tuple(tree["columns"]), tree["values"], added)
