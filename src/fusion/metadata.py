"""What columns beside the images say of their classes: Dirichlet-smoothed counts that back off.

A table has one column, or all of them jointly, and for each value v that was seen the classes that
were seen with it. With n_vc images of class c among n_v, the posterior mean under a Dirichlet prior
of weight α around q_v (Mackay & Peto, Natural Language Engineering 1995, a hierarchical Dirichlet
language model), over what it backs off to:

    p(c | v) = (n_vc + α q_vc) / (n_v + α)
    log p(c | v) − log q_vc = log(1 + n_vc / (α q_vc)) + constant of v

The constant moves all classes of an image alike, so a table holds numbers only where n_vc > 0, and
a value that was never seen, or is empty, adds nothing: it backs off. q is the class prior for one
column and, for the joint table, what the columns say when taken as independent given the class:
q_vc ∝ π_c Π_j p_j(c | v_j) / π_c. α is where the Dirichlet-multinomial likelihood of the counts is
largest; without information in the column it grows without bound and the table falls silent.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.special import gammaln

LOG_ALPHA = (np.log(0.1), np.log(1e7))
Columns = dict[str, np.ndarray]  # name → text [N]


@dataclass(frozen=True)
class Table:
    """columns: names · values: text [V, columns] · added: [V + 1, K], what is added to logits;
    the last row, of values not seen, is empty"""

    columns: tuple[str, ...]
    values: np.ndarray
    added: csr_array

    def rows(self, columns: Columns) -> np.ndarray:
        """The row of `added` of each image, [N]."""
        known = {tuple(v): i for i, v in enumerate(self.values.tolist())}
        given = zip(*(columns[name].tolist() for name in self.columns), strict=True)
        return np.array([known.get(v, len(self.values)) for v in given], dtype=int)

    def of(self, columns: Columns) -> np.ndarray:
        """What it adds to each image's logits, [N, K] float32."""
        return self.added[self.rows(columns)].toarray()

    def times(self, strength: float) -> "Table":
        return Table(self.columns, self.values, (self.added * np.float32(strength)).tocsr())


def tables(columns: Columns, labels: np.ndarray, prior: np.ndarray) -> list[Table]:
    """One for each column and, of several, one of all jointly.

    columns: of the images to count, text [N] each · labels: [N] · prior: π [K], sum 1
    """
    single = [_table((name,), columns, labels, prior, []) for name in columns]
    if len(single) == 1:
        return single
    return [*single, _table(tuple(columns), columns, labels, prior, single)]


def _table(
    names: tuple[str, ...],
    columns: Columns,
    labels: np.ndarray,
    prior: np.ndarray,
    below: list[Table],
) -> Table:
    """below: tables of the single columns that it backs off to, none: to the class prior"""
    text = np.stack([columns[name].astype(str) for name in names], axis=1)  # [N, columns]
    told = (text != "").all(1)
    values, which = np.unique(text[told], axis=0, return_inverse=True)
    shape = (len(values) + 1, len(prior))
    ones = np.ones(told.sum())
    counts = csr_array((ones, (which.ravel(), labels[told])), shape=shape)
    row = np.repeat(np.arange(shape[0]), np.diff(counts.indptr))  # [nonzero]
    parts = {name: values[:, j] for j, name in enumerate(names)}
    q = _backed(row, counts.indices, parts, prior, below)
    alpha = _concentration(counts, q)
    added = np.log1p(counts.data / (alpha * q)).astype(np.float32)
    return Table(names, values, csr_array((added, counts.indices, counts.indptr), shape=shape))


def _backed(
    row: np.ndarray, label: np.ndarray, parts: Columns, prior: np.ndarray, below: list[Table]
) -> np.ndarray:
    """q_vc at the places row (v) and label (c), [nonzero]; parts: the text of each value, [V]"""
    if not below:
        return prior[label]
    found = [table.added[table.rows(parts)] for table in below]
    total = sum(found[1:], start=found[0]).tocsr()  # [V, K], log of the product without π
    of = np.repeat(np.arange(total.shape[0]), np.diff(total.indptr))
    more = prior[total.indices] * np.expm1(total.data)
    whole = 1 + np.bincount(of, more, total.shape[0])  # Σ_c π_c Π_j, by v
    said = total[row, label]  # [nonzero]
    return prior[label] * np.exp(said) / whole[row]


def _concentration(counts: csr_array, q: np.ndarray) -> float:
    """α by maximum likelihood. counts: n_vc [V + 1, K] · q: [nonzero]"""
    per_value, n = np.asarray(counts.sum(axis=1)).ravel(), counts.data

    def loss(log_alpha: float) -> float:
        alpha = np.exp(log_alpha)
        values = gammaln(alpha) - gammaln(per_value + alpha)
        cells = gammaln(n + alpha * q) - gammaln(alpha * q)
        return -float(values.sum() + cells.sum())

    if not len(n):
        return float(np.exp(LOG_ALPHA[1]))
    return float(np.exp(minimize_scalar(loss, bounds=LOG_ALPHA, method="bounded").x))
