"""Area under the ROC curve, one class against the rest, averaged over classes.

AUC_c is the chance that an image of class c has a higher probability of c than an image of another
class, ties counting half (Hanley and McNeil, 1982). Classes without an image, or with all of them,
have none and are left out.
"""

import numpy as np


def macro_auc(
    probabilities: np.ndarray, labels: np.ndarray, num_classes: int, drawn: np.ndarray | None = None
) -> float | np.ndarray:
    """probabilities: [N, K] · drawn: how often each image counts, [N], or [B, N] for B scores of
    as many draws, [B]: each column is sorted once for all of them. NaN where no class has one."""
    weights = np.ones((1, len(labels))) if drawn is None else np.atleast_2d(drawn)
    total, known = np.zeros(len(weights)), np.zeros(len(weights))
    for c in np.unique(labels):
        area = _auc(probabilities[:, c], labels == c, weights)
        total += np.nan_to_num(area)
        known += ~np.isnan(area)
    scores = np.divide(total, known, out=np.full(len(weights), np.nan), where=known > 0)
    return scores if np.ndim(drawn) == 2 else float(scores[0])


def _auc(p: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of one class. p: [N] · positive: [N] · weights: [B, N] → [B]"""
    order = np.argsort(p, kind="stable")
    p, positive = p[order], positive[order]
    rest = np.cumsum(np.where(positive, 0.0, weights[:, order]), axis=1)  # at or before, [B, N]
    rest = np.concatenate([np.zeros((len(weights), 1)), rest], axis=1)
    mine = p[positive]
    below = rest[:, np.searchsorted(p, mine, "left")]  # [B, positives]
    upto = rest[:, np.searchsorted(p, mine, "right")]
    w = weights[:, order][:, positive]
    pairs = w.sum(1) * rest[:, -1]
    above = (w * (below + upto) / 2).sum(1)
    return np.divide(above, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
