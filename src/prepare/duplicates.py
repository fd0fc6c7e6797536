"""Images that show the same photo: identical files, and near copies by perceptual hash.

All images of one photo become one group, and a group never spans two folds. Nothing here compares
all pairs, whatever N is: see `near_pairs`.
"""

from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

COLUMNS = [
    "image_id_a",
    "image_id_b",
    "split_a",
    "split_b",
    "kind",
    "distance",
    "class_id_a",
    "class_id_b",
    "conflict",
]
BITS = 64
SORTING = 30  # a row costs in a sort as much as so many comparisons
FLAT = 26  # a hash has its median's half of 64 bits set; far fewer: an image without structure


def find_duplicates(images: pd.DataFrame, limit: int | None) -> tuple[pd.DataFrame, np.ndarray]:
    """Pairs of images that are the same photo, and the component of each image.

    images: image_id, split (train | test), class_id ("" if unknown), group and maybe observation
    ("" for none), sha1, phash; sorted, train before test. limit: largest distance in bits; None:
    identical files only. Of m identical files, m − 1 pairs are listed, all with the first.
    `conflict` is "yes" when both classes are known and differ.
    Returns the pairs (COLUMNS, sorted) and components [N], the same number for the same photo, the
    same group or the same observation.
    """
    pairs = [_with_first(images["sha1"], 0)]
    kinds = ["exact"]
    if limit is not None:
        pairs.append(_near(images, limit))
        kinds.append("near")
    links = np.concatenate([p[:, :2] for p in pairs])
    for column in [name for name in ("group", "observation") if name in images]:
        grouped = np.flatnonzero(images[column] != "")
        same = grouped[_with_first(images[column].iloc[grouped], 0)[:, :2]]
        links = np.concatenate([links, same])
    graph = coo_array((np.ones(len(links)), links.T), shape=(len(images), len(images)))
    component = connected_components(graph, directed=False)[1]
    tables = [_table(images, p, kind) for p, kind in zip(pairs, kinds, strict=True)]
    table = pd.concat(tables, ignore_index=True)
    order = ["kind", "split_a", "image_id_a", "split_b", "image_id_b"]
    return table.sort_values(order, kind="stable", ignore_index=True), component


def near_pairs(hashes: np.ndarray, limit: int) -> np.ndarray:
    """Pairs (i, j, distance), i < j, of 64-bit hashes that differ in at most `limit` bits, [P, 3].

    Pigeonhole: of limit + s bands of bits, two such hashes agree in at least s. So for every choice
    of s bands only hashes that agree in all of them are compared, C(limit + s, s) sorts and about
    N² / 2^(64 s / (limit + s)) comparisons each; s grows with N, so that these never are the most.
    Memory: O(N + P). hashes: uint64 [N], distinct.
    """
    found = [np.empty((0, 3), dtype=np.int64)]
    bands, same = _bands(len(hashes), limit)
    for chosen in combinations(range(bands), same):
        mask = np.uint64(sum(1 << bit for bit in range(BITS) if bit % bands in chosen))
        keys = hashes & mask
        order = np.argsort(keys, kind="stable")
        ends = np.searchsorted(keys[order], keys[order], side="right")
        first, step = np.arange(len(order)), 1
        while len(first := first[first + step < ends[first]]):
            a, b = order[first], order[first + step]
            distance = np.bitwise_count(hashes[a] ^ hashes[b]).astype(np.int64)
            close = distance <= limit
            low, high = np.minimum(a, b)[close], np.maximum(a, b)[close]
            found.append(np.stack([low, high, distance[close]], axis=1))
            step += 1
    return np.unique(np.concatenate(found), axis=0)


def _bands(count: int, limit: int) -> tuple[int, int]:
    """How many bands, and in how many of them close hashes agree, for the least work."""

    def work(same: int) -> float:
        bits = BITS * same / (limit + same)
        return comb(limit + same, same) * (SORTING * count + count**2 / 2**bits)

    same = min((1, 2, 3), key=work)
    return limit + same, same


def _with_first(values: pd.Series, distance: int) -> np.ndarray:
    """Pairs (first, other, distance) of rows with the same value, [P, 3]."""
    codes = pd.factorize(values)[0]
    first = np.unique(codes, return_index=True)[1][codes]
    other = np.flatnonzero(first != np.arange(len(codes)))
    return np.stack([first[other], other, np.full(len(other), distance)], axis=1)


def _near(images: pd.DataFrame, limit: int) -> np.ndarray:
    """Near pairs among the first images of each distinct file; flat images have no near pairs."""
    files = np.flatnonzero(~images["sha1"].duplicated())
    hashes = images["phash"].iloc[files].map(lambda text: int(text, 16)).to_numpy(np.uint64)
    structured = np.bitwise_count(hashes) >= FLAT
    files, hashes = files[structured], hashes[structured]
    same = _with_first(pd.Series(hashes), 0)
    distinct = np.sort(np.unique(hashes, return_index=True)[1])
    near = near_pairs(hashes[distinct], limit)
    near[:, :2] = distinct[near[:, :2]]
    pairs = np.concatenate([same, near])
    pairs[:, :2] = files[pairs[:, :2]]
    return pairs


def _table(images: pd.DataFrame, pairs: np.ndarray, kind: str) -> pd.DataFrame:
    a, b = (images.iloc[pairs[:, side]].reset_index(drop=True) for side in (0, 1))
    known = (a["class_id"] != "") & (b["class_id"] != "")
    conflict = known & (a["class_id"] != b["class_id"])
    return pd.DataFrame(
        {
            "image_id_a": a["image_id"],
            "image_id_b": b["image_id"],
            "split_a": a["split"],
            "split_b": b["split"],
            "kind": kind,
            "distance": pairs[:, 2],
            "class_id_a": a["class_id"],
            "class_id_b": b["class_id"],
            "conflict": np.where(conflict, "yes", "no"),
        },
        columns=COLUMNS,
    )
