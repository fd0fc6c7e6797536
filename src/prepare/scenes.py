"""Scenes: images of one class that are far more alike than images of two scenes ever are.

A network that has seen one frame of a burst knows the others, so folds that split a burst flatter.
Near-identical hashes (duplicates.py) do not find frames that moved. With unit features f and

    o_i    = 1 − max f_i · f_j over j of other classes    surely another scene: the yardstick
    ρ_ij   = (1 − f_i · f_j) / min(o_i, o_j)              of two images of one class

two images are of one scene if ρ_ij ≤ ratio; scenes are the connected components. Images of two
scenes have ρ near 1, whatever the features and however alike the data set is. Features: 8 × 8
colours, centred, of a thumbnail; or of a pretrained network (scene_network.py).

Evidence. Images of easy classes have small ρ, too, but a smooth crowd has no edges: an image just
beyond the limit is hardly farther than one within. A scene has: its frames are near each other and
far from the rest of their class. With a_i the distance (1 − cosine) of an image to its nearest mate
and b_i to the nearest image of its class that is not of its scene, it stands apart if b_i ≥ 2 a_i.
Evidence is strong if at least MANY images, and SHARE of those looked at, have mates and something
else in their class to be compared with, and at least APART of these stand apart. Order is evidence,
too: where file names end in consecutive numbers, or EXIF times are less than MINUTE apart, such
neighbours are compared with random pairs of the same class; if a neighbour is the closer one in at
least CLOSER of ORDERED or more cases, neighbours with ρ ≤ 2 · ratio are of one scene. Duplicates
that are known already are no evidence, and images below SMALL pixels are not looked at.

At most SAMPLE images, whole classes, are looked at before evidence is found; other classes are
represented by OTHERS images. Nothing is compared across classes but with those.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from src.config.scenes import Scenes
from src.data.images import to_rgb

SIDE = 8  # of a thumbnail, pixels
SMALL = 64
SAMPLE, OTHERS = 4_000, 20_000
MANY, SHARE, APART = 10, 0.02, 0.75
ORDERED, CLOSER = 30, 0.75
MINUTE = 60  # seconds
CHUNK = 2**22
DATE, ORIGINAL, EXIF = 306, 36867, 0x8769  # EXIF's tags


@dataclass(frozen=True)
class Found:
    """scene: [N], the same number for one scene, all different where there are none · facts: for
    the manifest, what was looked at and what was seen"""

    scene: np.ndarray
    facts: dict


@dataclass(frozen=True)
class Looked:
    """Images as scenes are told by. rows: of the table [n] · y: classes [n] · f: unit features
    [n, D] · pairs: [P, 2] neighbours by number or time, of one class · other: o [n]"""

    rows: np.ndarray
    y: np.ndarray
    f: np.ndarray
    pairs: np.ndarray
    other: np.ndarray = field(default_factory=lambda: np.empty(0))


def find_scenes(images: pd.DataFrame, keys: Scenes, features, workers: int = 0) -> Found:
    """images: image_id, path, source (the file that 01 was given), class_id, group_id, width,
    height; sorted by image_id · features: (images) → [n, D] of some rows; None: pixels"""
    none = np.arange(len(images))
    big = np.flatnonzero(images[["width", "height"]].min(axis=1) >= SMALL)
    y = pd.factorize(images["class_id"])[0]
    big = big[np.bincount(y[big], minlength=y.max() + 1)[y[big]] > 1]
    if keys.mode == "never" or len(np.unique(y[big])) < 2:
        why = "not looked for" + (
            "" if keys.mode == "never"
            else f": fewer than two classes have two images of {SMALL} pixels or more"
        )  # fmt: skip
        return Found(none, {"mode": keys.mode, "looked_at": 0, "strong": False, "why": why})
    some = big if keys.mode == "always" else _sample(big, y)
    looked = _look(images, some, y, features, workers)
    seen = evidence(looked, images["group_id"].to_numpy()[some], keys.ratio)
    facts = {"mode": keys.mode, "features": "network" if features else "pixels"}
    facts |= {"looked_at": len(some), **seen}
    if not (seen["strong"] or keys.mode == "always"):
        return Found(none, facts)
    if len(some) < len(big):
        looked = _look(images, big, y, features, workers)
    links = links_of(looked, keys.ratio, seen["ordered"])
    return Found(components(links, len(images)), facts)


def _sample(rows: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rows of whole classes, in random order until SAMPLE; always two classes."""
    order = np.random.default_rng(0).permutation(np.unique(y[rows]))
    total = np.cumsum(np.bincount(y[rows], minlength=y.max() + 1)[order])
    return rows[np.isin(y[rows], order[: max(2, int((total <= SAMPLE).sum()))])]


def _look(images, rows, y, features, workers: int) -> Looked:
    part = images.iloc[rows]
    thumbs, times = zip(*_opened(part, workers), strict=True)
    f = np.stack(thumbs) if features is None else features(part)
    f = f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-6)
    pairs = neighbours(part["source"].tolist(), y[rows], np.array(times, dtype=float))
    looked = Looked(rows, y[rows], f.astype(np.float32), pairs)
    return Looked(rows, looked.y, looked.f, pairs, others(looked))


def _opened(images: pd.DataFrame, workers: int) -> list[tuple[np.ndarray, float]]:
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(pool.map(thumbnail, images["path"], images["source"]))


def thumbnail(path: str, source: str) -> tuple[np.ndarray, float]:
    """Centred colours of 8 × 8 places, [192], and the time of EXIF in seconds, NaN where there is
    none. A JPEG is decoded at a fraction of its size."""
    with Image.open(path) as image:
        when = _time(image) if source == path else float("nan")
        image.draft("RGB", (4 * SIDE, 4 * SIDE))
        small = to_rgb(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    if source != path:
        with Image.open(source) as image:
            when = _time(image)
    colours = np.asarray(small, dtype=np.float32).ravel()
    return colours - colours.mean(), when


def _time(image: Image.Image) -> float:
    try:
        exif = image.getexif()
        text = exif.get_ifd(EXIF).get(ORIGINAL) or exif.get(DATE) or ""
        return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S").timestamp()
    except Exception:  # metadata of unknown files may be damaged in any way
        return float("nan")


def others(looked: Looked) -> np.ndarray:
    """o: 1 − the largest similarity to an image of another class, [n]; in chunks."""
    n = len(looked.y)
    far = np.arange(n)
    if n > OTHERS:
        far = np.sort(np.random.default_rng(0).choice(n, OTHERS, replace=False))
    found, step = np.empty(n), max(1, CHUNK // len(far))
    for start in range(0, n, step):
        part = slice(start, start + step)
        s = looked.f[part] @ looked.f[far].T  # [step, len(far)]
        s[looked.y[part, None] == looked.y[far]] = -1
        found[part] = 1 - s.max(1)
    return np.maximum(found, 1e-6)


def neighbours(paths: list[str], y: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Pairs (i, j), i < j, of one class whose names differ by one in their last number and nothing
    else, or that were taken one after the other within a minute, [P, 2]."""
    pure = [PurePosixPath(path) for path in paths]
    named = [re.fullmatch(r"(.*?)(\d{1,15})(\D*)", path.stem) for path in pure]
    start = [f"{p.parent}/{m[1]}*{m[3]}" if m else "" for p, m in zip(pure, named, strict=True)]
    number = [float(m[2]) if m else np.nan for m in named]
    table = pd.DataFrame({"y": y, "start": start, "number": number, "time": times})
    pairs = [_next(table, ["y", "start"], "number", 1), _next(table, ["y"], "time", MINUTE)]
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)


def _next(table: pd.DataFrame, same: list[str], by: str, apart: float) -> np.ndarray:
    """Rows that follow each other by a column, at most `apart`, within equal others, [P, 2]."""
    known = table[table[by].notna()].sort_values([*same, by], kind="stable")
    step = known.groupby(same)[by].diff()
    after = np.flatnonzero((step <= apart).to_numpy())
    rows = known.index.to_numpy()
    return np.stack([rows[after - 1], rows[after]], axis=1)


def evidence(looked: Looked, groups: np.ndarray, ratio: float) -> dict:
    """mates: share of the images that have mates and others in their class · apart: of these, how
    many stand apart · ordered: whether neighbours by number or time are closer than chance has it ·
    strong. groups: [n], of duplicates one is looked at"""
    first = np.flatnonzero(~pd.Series(groups).duplicated().to_numpy())
    once = Looked(np.arange(len(first)), looked.y[first], looked.f[first], looked.pairs[:0],
                  looked.other[first])  # fmt: skip
    inside, outside = _edges(once, components(links_of(once, ratio, False), len(first)))
    known = np.isfinite(inside) & np.isfinite(outside)
    apart = float(np.mean(outside[known] >= 2 * inside[known])) if known.any() else 0.0
    heaps = known.sum() >= max(MANY, SHARE * len(first)) and apart >= APART
    closer, cases = _closer(looked, groups)
    ordered = cases >= ORDERED and closer >= CLOSER
    seen = {"mates": round(float(known.mean()), 4), "apart": round(apart, 4)}
    seen |= {"neighbours": cases, "closer": round(closer, 4)}
    return seen | {"ordered": bool(ordered), "strong": bool(heaps or ordered)}


def components(links: np.ndarray, size: int) -> np.ndarray:
    """[size], the same number for what hangs together."""
    graph = coo_array((np.ones(len(links)), links.T), shape=(size, size))
    return connected_components(graph, directed=False)[1]


def _edges(looked: Looked, scene: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each image to the nearest one of its scene, and to the nearest one of its class
    that is not, [n] each; inf where there is none."""
    inside, outside = np.full((2, len(looked.y)), np.inf)
    for rows, part, s in _by_class(looked):
        d = 1 - s
        d[part[:, None] == rows] = np.inf
        same = scene[part][:, None] == scene[rows]
        inside[part] = np.where(same, d, np.inf).min(1)
        outside[part] = np.where(same, np.inf, d).min(1)
    return inside, outside


def _by_class(looked: Looked):
    """(rows of a class, some of them, their similarities [len(some), len(rows)]), in chunks."""
    order = np.argsort(looked.y, kind="stable")
    ends = np.flatnonzero(np.diff(looked.y[order])) + 1
    for rows in np.split(order, ends):
        step = max(1, CHUNK // len(rows))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            yield rows, part, looked.f[part] @ looked.f[rows].T


def _closer(looked: Looked, groups: np.ndarray) -> tuple[float, int]:
    """In what share of the pairs of neighbours, duplicates aside, the two are more alike than the
    first one and a random other image of the class; and how many pairs those are."""
    pairs = looked.pairs[groups[looked.pairs[:, 0]] != groups[looked.pairs[:, 1]]]
    rng, of_class = np.random.default_rng(0), pd.Series(np.arange(len(looked.y))).groupby(looked.y)
    members = {c: rows.to_numpy() for c, rows in of_class}
    wins = []
    for i, j in pairs[:SAMPLE]:
        left = np.setdiff1d(members[looked.y[i]], (i, j))
        if len(left):
            k = rng.choice(left)
            wins.append(looked.f[i] @ looked.f[j] > looked.f[i] @ looked.f[k])
    return (float(np.mean(wins)), len(wins)) if wins else (0.0, 0)


def links_of(looked: Looked, ratio: float, ordered: bool) -> np.ndarray:
    """Pairs of one scene as rows of the table, [P, 2]."""
    found = [np.empty((0, 2), dtype=np.int64)]
    for rows, part, s in _by_class(looked):
        a, b = np.nonzero(1 - s <= ratio * np.minimum(looked.other[part][:, None],
                                                      looked.other[rows]))  # fmt: skip
        found.append(np.stack([part[a], rows[b]], axis=1))
    if ordered and len(looked.pairs):
        i, j = looked.pairs.T
        apart = 1 - (looked.f[i] * looked.f[j]).sum(1)
        found.append(looked.pairs[apart <= 2 * ratio * np.minimum(*looked.other[[i, j]])])
    links = np.concatenate(found)
    return looked.rows[links[links[:, 0] < links[:, 1]]]


def joined(groups: np.ndarray, scene: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """group_id [N] of groups and scenes as one: the smallest image_id of the images that hang
    together by either."""
    own = pd.factorize(groups)[0]
    n = len(ids)
    edges = np.stack([np.concatenate([own, scene + n]), np.tile(np.arange(n) + 2 * n, 2)], axis=1)
    component = components(edges, 3 * n)[2 * n :]
    return pd.Series(ids).groupby(component).transform("min").to_numpy()


def split_by(fold: np.ndarray, scene: np.ndarray) -> float:
    """Share of the held-out images that have a mate of their scene in another fold, by which the
    network that judges them was taught."""
    table = pd.DataFrame({"fold": fold, "scene": scene})
    size = table.groupby("scene")["fold"].transform("size")
    here = table.groupby(["scene", "fold"])["fold"].transform("size")
    held_out = table["fold"] >= 0
    return float(((size > here) & held_out).sum() / max(held_out.sum(), 1))
