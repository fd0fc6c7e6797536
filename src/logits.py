"""Features and logits as plain arrays: what stages 2 to 6 compute with. numpy only.

f: features [N, D] · W: class weights or class means [K, D] · z: logits [N, K]
"""

import numpy as np

BLOCK = 2**20  # cosines between images and neighbours at once
STRIDE = 1024  # neighbours among these
FINE = 2**20  # cosines that are the same in parts of this are equal
SPAN = 2**40  # above any number of neighbours


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their Euclidean norm; a zero row stays zero."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(norm, 1e-12)


def centred(rows: np.ndarray) -> np.ndarray:
    """Unit vectors of rows − their mean: of texts, whose mean says only that all are birds."""
    return unit(rows - rows.mean(0))


def linear_logits(f: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """z = f Wᵀ + b, [N, K]."""
    z = f @ weight.T
    return z if bias is None else z + bias


def cosine_logits(f: np.ndarray, weight: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """z = scale · cos(f, w_c), [N, K]."""
    return scale * (unit(f) @ unit(weight).T)


def nearest_centre_logits(f: np.ndarray, weight: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """z = scale · max_j cos(f, w_cj), [N, K], of n centres per class; weight: [K, n, D]."""
    z = cosine_logits(f, weight[:, 0], scale)
    for j in range(1, weight.shape[1]):  # one at a time: [N, K n] may be gigabytes
        np.maximum(z, cosine_logits(f, weight[:, j], scale), out=z)
    return z


def nearest(f: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `bank` [M, D] with the largest cosines to each of f [N, D]: cosines [N, k],
    rounded to parts of 1 / FINE, and rows [N, k]; the first row of equals. All M where k is more.

    Cosine and row make one whole number, so that equals go by the order of the bank whatever the
    blocks are in which it is searched, and never an [N, M].
    """
    k = min(k, len(bank))
    step = max(1, BLOCK // min(len(bank), STRIDE))
    cosines, rows = np.empty((len(f), k), np.float32), np.empty((len(f), k), np.int64)
    for i in range(0, len(f), step):
        query = unit(f[i : i + step])
        best = np.empty((len(query), 0), np.int64)
        for j in range(0, len(bank), STRIDE):
            block = unit(bank[j : j + STRIDE].astype(np.float32))
            z = np.rint(query @ block.T * FINE).astype(np.int64)
            best = np.concatenate([best, z * SPAN - np.arange(j, j + len(block))], 1)
            if best.shape[1] > k:
                best = np.partition(best, -k, axis=1)[:, -k:]
        best = -np.sort(-best, axis=1)
        rows[i : i + step] = where = -best % SPAN
        cosines[i : i + step] = (best + where) // SPAN / FINE
    return cosines, rows


def knn_logits(f: np.ndarray, head: dict[str, np.ndarray]) -> np.ndarray:
    """Log of the classes' smoothed shares of the votes of each row's k nearest, [N, K]; formula in
    src/rebalance/knn.py. head: bank, labels, votes, k, temperature, smoothing"""
    votes, smoothing = head["votes"], float(head["smoothing"])
    cosines, rows = nearest(f, head["bank"], int(head["k"]))  # [N, k]
    labels = head["labels"][rows]
    weight = np.exp((cosines - cosines[:, :1]) / float(head["temperature"])) * votes[labels]
    shares = np.zeros((len(f), len(votes)), np.float32)
    np.add.at(shares, (np.arange(len(f))[:, None], labels), weight)
    shares /= shares.sum(1, keepdims=True)
    return np.log((1 - smoothing) * shares + smoothing / len(votes))


def class_means(f: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Mean over each class of the L2-normalised features, [K, D]."""
    return means_by_class(unit(f), labels, num_classes)


def label_embedding_logits(f: np.ndarray, head: dict[str, np.ndarray]) -> np.ndarray:
    """z = scale · cos(P f / ‖f‖ + b, t_c), [N, K]; head: projection P [E, D], bias b [E], text t
    [K, E], scale."""
    return cosine_logits(
        linear_logits(unit(f), head["projection"], head["bias"]), head["text"], float(head["scale"])
    )


def means_by_class(rows: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Mean over each class of the rows [N, D] as they are, [K, D]. A class without rows is an
    error: its mean would be zero and nothing would ever be assigned to it."""
    counts = np.bincount(labels, minlength=num_classes)
    if counts.min() == 0:
        raise ValueError(f"labels {np.flatnonzero(counts == 0).tolist()} have no features")
    sums = np.zeros((num_classes, rows.shape[1]), dtype=np.float64)
    np.add.at(sums, labels, rows)
    return (sums / counts[:, None]).astype(np.float32)


def norm_radius(norms: np.ndarray, ratio: float) -> float:
    """MaxNorm's δ = min‖w‖ + ratio (max‖w‖ − min‖w‖) of the norms [K] of a classifier's weights."""
    return float(norms.min() + ratio * (norms.max() - norms.min()))


def seen(f: np.ndarray, head: dict[str, np.ndarray]) -> np.ndarray:
    """The columns (from, to) of the features [N, D] that a head acts on; all if it names none."""
    return f if "columns" not in head else f[:, slice(*head["columns"])]


def head_logits(f: np.ndarray, head: dict[str, np.ndarray], kind: str) -> np.ndarray:
    """Logits of a head that 02 or 03 saved.

    kind: linear (weight [K, D], bias [K]), cosine (weight, scale []), subcentre (weight [K, n, D],
    scale), centred (weight, bias, center [D]), which is linear in the unit vector of f − center,
    label_embedding, see `label_embedding_logits`, or knn, see `knn_logits`. A head of one branch of
    a network also has `columns`, see `seen`.
    """
    f = seen(f, head)
    if kind == "linear":
        return linear_logits(f, head["weight"], head.get("bias"))
    if kind == "cosine":
        return cosine_logits(f, head["weight"], float(head["scale"]))
    if kind == "subcentre":
        return nearest_centre_logits(f, head["weight"], float(head["scale"]))
    if kind == "centred":
        return linear_logits(unit(f - head["center"]), head["weight"], head["bias"])
    if kind == "label_embedding":
        return label_embedding_logits(f, head)
    if kind == "knn":
        return knn_logits(f, head)
    raise ValueError(f"unknown kind of head {kind!r}")


def head_distance(f: np.ndarray, head: dict[str, np.ndarray], kind: str) -> np.ndarray | None:
    """1 − cosine to the nearest of what a head compares features with, [N]: a class's centre or
    mean, knn: a training image. Large for images of no known class (open-set recognition, Scheirer
    et al., TPAMI 2013). None for a linear head, which compares with nothing."""
    f = seen(f, head)
    if kind == "cosine":
        return 1 - cosine_logits(f, head["weight"]).max(1)
    if kind == "subcentre":
        return 1 - nearest_centre_logits(f, head["weight"]).max(1)
    if kind == "centred":
        return 1 - cosine_logits(f - head["center"], head["weight"]).max(1)
    if kind == "label_embedding":
        return 1 - label_embedding_logits(f, head | {"scale": 1.0}).max(1)
    if kind == "knn":
        return 1 - nearest(f, head["bank"], 1)[0][:, 0]
    return None


def to_range(z: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Map each row of z linearly onto the range of the same row of `like`.

    z̃ = (max l − min l) / (max z − min z) · (z − min z) + min l. The ranking within a row stays.
    """
    low, high = z.min(1, keepdims=True), z.max(1, keepdims=True)
    to_low, to_high = like.min(1, keepdims=True), like.max(1, keepdims=True)
    return (to_high - to_low) * (z - low) / np.maximum(high - low, 1e-12) + to_low


def by_eta(z: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Each row of z times η = max l / max z, so that both rows have the same maximum.

    Where a maximum is not above 0 (log-probabilities, minus distances) η would turn the ranking
    round or blow it up: those rows are mapped by `to_range`, and in no other way.
    """
    top, to_top = z.max(1, keepdims=True), like.max(1, keepdims=True)
    safe = (top > 1e-12) & (to_top > 0)
    scaled = z * np.where(safe, to_top / np.where(safe, top, 1), 1).astype(z.dtype)
    return scaled if safe.all() else np.where(safe, scaled, to_range(z, like))
