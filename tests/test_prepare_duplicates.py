"""Duplicates: found without comparing all pairs, and exactly those."""

from math import comb

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from src.prepare import duplicates
from src.prepare.duplicates import find_duplicates, near_pairs
from tests.prepare_kit import photo


@pytest.mark.parametrize(
    ("limit", "same"), [(0, 1), (1, 1), (1, 3), (4, 1), (4, 2), (4, 3), (7, 2)]
)
def test_near_pairs_are_those_of_the_slow_way(limit, same, monkeypatch):
    """However many bands close hashes are told by: few images take one, millions two or three."""
    monkeypatch.setattr(duplicates, "_bands", lambda count, limit: (limit + same, same))
    rng = np.random.default_rng(limit)
    seeds = rng.integers(0, 2**64, 150, dtype=np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, (6, 900)).astype(np.uint64)
    keep = rng.random((6, 900)) < 0.6
    noise = np.bitwise_xor.reduce(np.where(keep, flips, np.uint64(0)), axis=0)
    hashes = np.unique(rng.choice(seeds, 900) ^ noise)
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None]).astype(int)
    low, high = np.nonzero(np.triu(distance <= limit, 1))
    expected = np.stack([low, high, distance[low, high]], axis=1)
    assert limit < 2 or len(expected) > 100
    assert np.array_equal(near_pairs(hashes, limit), expected)


def test_bands_grow_with_the_images_so_that_work_does_not_grow_with_their_square():
    def work(count):
        bands, same = duplicates._bands(count, 4)
        assert bands == 4 + same
        compared = count**2 / 2 ** (64 * same / bands)
        return comb(bands, same) * (duplicates.SORTING * count + compared)

    assert duplicates._bands(1000, 4)[1] == 1 and duplicates._bands(2_700_000, 4)[1] > 1
    assert work(8_000_000) < 3 * 20 * work(400_000)  # 20 times the images; by the square it is 400


def table(rows) -> pd.DataFrame:
    columns = ["image_id", "split", "class_id", "group", "sha1", "phash"]
    return pd.DataFrame(rows, columns=columns)


def phash(image: Image.Image) -> str:
    return str(imagehash.phash(image.convert("RGB")))


def test_pairs_conflicts_and_components():
    one, two, three = (phash(photo(i)) for i in range(3))
    smaller = phash(photo(0).resize((48, 36)))
    images = table(
        [
            ("a", "train", "1", "", "s1", one),
            ("b", "train", "2", "", "s1", one),
            ("c", "train", "1", "", "s2", two),
            ("d", "train", "1", "g", "s3", three),
            ("e", "train", "1", "g", "s4", phash(photo(3))),
            ("t", "test", "", "", "s5", smaller),
        ]
    )
    pairs, component = find_duplicates(images, 4)
    found = pairs[["image_id_a", "image_id_b", "split_b", "kind", "conflict"]]
    assert found.values.tolist() == [
        ["a", "b", "train", "exact", "yes"],
        ["a", "t", "test", "near", "no"],
    ]
    same = [[x == y for x in component] for y in component]
    assert same[0] == [True, True, False, False, False, True]  # a, b and t
    assert same[3] == [False, False, False, True, True, False]  # the group g
    assert find_duplicates(images, None)[0]["kind"].tolist() == ["exact"]


def test_flat_images_do_not_become_one_photo():
    shades = [Image.new("RGB", (40, 40), (i, i, i)) for i in range(0, 250, 5)]
    images = table(
        [(f"{i:02d}", "train", "1", "", f"s{i}", phash(s)) for i, s in enumerate(shades)]
    )
    pairs, component = find_duplicates(images, 4)
    assert len(pairs) == 0 and len(set(component)) == len(shades)


def test_many_copies_are_listed_once_each():
    images = table([(f"{i:03d}", "train", "1", "", "s", phash(photo(0))) for i in range(200)])
    pairs, component = find_duplicates(images, 4)
    assert len(pairs) == 199 and set(pairs["image_id_a"]) == {"000"} and len(set(component)) == 1
