"""Text: a classifier that begins where the names of its classes say (Shi et al., ICML 2024,
"Long-tail learning with foundation model", section 4.3), so that a rare class has a place of its
own before it is learned.

t_c [E]: the unit vector of the names of class c, `Classes.text`.

clip     W = norm(norm(T) projᵀ), proj [D, E] the projection of CLIP's image tower; f are the
         features before it, and f · w_c is about what CLIP's cosine of image and text ranks by.
fitted   any text with any features. m_c: the mean of f / ‖f‖ over the training images of class c.
         Ridge regression of the centred means on the centred texts, where each class counts once,

             B = argmin_B Σ_c ‖(m_c − m̄) − (t_c − t̄) B‖² + λ ‖B‖²       w_c = m̄ + (t_c − t̄) B

         for every class, with images or without. λ is the one that predicts best the mean of a
         class that is left out, in closed form: residual_c / (1 − h_c). If the names say nothing
         (shuffled, say), λ grows and all classes begin at m̄.
"""

import numpy as np

from src import logits
from src.errors import UserError

RIDGE = 1.0  # of `to_names`, where a head starts from it
GRID = np.logspace(-6, 3, 28)  # λ, in units of the largest squared singular value of the texts
BLOCK = 8192  # features at once


def text(section, known) -> np.ndarray:
    """[K, D]. Errors: UserError when CLIP's projection is asked for and is not there or is of other
    widths."""
    names = known.classes.text
    found = None if section.projection == "fitted" else known.to_text()
    wanted = (known.features.shape[1], names.shape[1])
    if found is not None and found.shape == wanted:
        return logits.unit(names) @ found.T
    if section.projection == "clip":
        what = "has none" if found is None else f"has one of {list(found.shape)}"
        raise UserError(
            f"projection: clip needs an image projection of D x E = {list(wanted)}, and the "
            f"backbone {what}. Take one of timm's *_clip_* with model.pretrained=true or the file "
            "of the whole tower, and text by the same CLIP; or set projection=fitted"
        )
    present = np.bincount(known.labels, minlength=known.classes.num) > 0
    rank = np.cumsum(present) - 1
    means = logits.class_means(known.features, rank[known.labels], int(present.sum()))
    return to_features(names.astype(np.float64), means.astype(np.float64), present)


def to_features(names: np.ndarray, means: np.ndarray, present: np.ndarray) -> np.ndarray:
    """w [K, D] by ridge regression; names: [K, E] · means: [K', D], of the classes that are
    `present` [K], in their order."""
    own = names[present]
    m, t = means.mean(0), own.mean(0)
    left, s, right = np.linalg.svd(own - t, full_matrices=False)  # [K', r], [r], [r, E]
    if not s.any():
        return np.tile(m, (len(names), 1))
    target = left.T @ (means - m)  # [r, D]

    def left_out(ridge: float) -> float:
        kept = s**2 / (s**2 + ridge)  # [r]
        own_share = 1 / len(own) + (left**2) @ kept  # [K'], h_c
        residual = (means - m) - left @ (kept[:, None] * target)
        return float(np.square(residual / np.maximum(1 - own_share, 1e-9)[:, None]).mean())

    ridge = min(GRID * s[0] ** 2, key=left_out)
    slope = right.T @ ((s / (s**2 + ridge))[:, None] * target)  # [E, D]
    return m + (names - t) @ slope


def to_names(
    features: np.ndarray, labels: np.ndarray, names: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """The other way: P [E, D] and b [E] of the ridge regression P u + b ≈ t from unit features
    u [N, D] to the centred names of their classes, in which every class that has images counts the
    same.

        P, b = argmin Σ_i a_i ‖P u_i + b − t_{y_i}‖² + λ ‖P‖²,   a_i = 1 / (K' N_{y_i})

    λ is `ridge` times the mean over the D directions of the weighted variance of u.
    """
    t = logits.centred(names.astype(np.float64))
    counts = np.bincount(labels, minlength=len(names))
    share = 1 / (np.count_nonzero(counts) * np.maximum(counts, 1.0))  # [K], a_i of an image
    width = features.shape[1]
    second, sums = np.zeros((width, width)), np.zeros((len(names), width))
    for start in range(0, len(labels), BLOCK):
        u = logits.unit(features[start : start + BLOCK].astype(np.float64))
        y = labels[start : start + BLOCK]
        second += (u * share[y, None]).T @ u
        np.add.at(sums, y, u * share[y, None])
    mean, target = sums.sum(0), (counts * share) @ t  # [D], [E]
    covariance = second - np.outer(mean, mean)
    cross = sums.T @ t - np.outer(mean, target)  # [D, E]
    loading = max(ridge * np.trace(covariance) / width, 1e-12)
    p = np.linalg.solve(covariance + loading * np.eye(width), cross).T
    return p.astype(np.float32), (target - p @ mean).astype(np.float32)
