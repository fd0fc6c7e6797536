"""Labels, bins and the artificial tail, against values worked out by hand or published."""

import numpy as np
import pandas as pd
import pytest

from src.config.data import Bins, Longtail
from src.errors import UserError
from src.prepare.classes import assign_bins, class_lines, class_order, class_table
from src.prepare.longtail import cut_tail, tail_counts


def test_numeric_ids_come_first_and_by_number():
    ids = ["10", "9", "n02", "4780", "007", "7", "NA", "1e5", "00123", "9"]
    assert class_order(ids) == ["7", "007", "9", "10", "00123", "4780", "1e5", "NA", "n02"]


def test_class_table_and_lines():
    train = pd.DataFrame({"class_id": ["9", "4780", "9"], "class_name": ["wren", "owl", "wren"]})
    table = class_table(train, ["9", "4780"], Bins(many=1, few=1))
    assert table.to_dict("list") == {
        "label": [0, 1],
        "class_id": ["9", "4780"],
        "class_name": ["wren", "owl"],
        "count": [2, 1],
        "bin": ["many", "medium"],
    }
    assert class_lines(table) == "0 9\n1 4780\n"


def test_thresholds_are_more_than_and_fewer_than():
    found = assign_bins(np.array([101, 100, 20, 19, 1]), Bins(many=100, few=20))
    assert found.tolist() == ["many", "medium", "medium", "few", "few"]


def test_terciles_and_halves_split_the_classes_evenly_and_ties_by_label():
    counts = np.array([5, 9, 5, 1, 5, 2, 8])
    found = assign_bins(counts, Bins(mode="terciles"))
    assert found.tolist() == ["many", "many", "medium", "few", "medium", "few", "many"]
    assert assign_bins(np.array([3, 3, 3]), Bins(mode="halves")).tolist() == [
        "head",
        "head",
        "tail",
    ]


@pytest.mark.parametrize(
    "profile, largest, num_classes, ratio, total",
    [
        ("exp", 5000, 10, 200, 11203),
        ("exp", 5000, 10, 100, 12406),
        ("exp", 5000, 10, 50, 13996),
        ("exp", 5000, 10, 10, 20431),
        ("step", 5000, 10, 100, 25250),
        ("exp", 500, 100, 200, 9502),
        ("exp", 500, 100, 100, 10847),
        ("exp", 500, 100, 50, 12608),
        ("exp", 500, 100, 10, 19573),
        ("step", 500, 100, 100, 25250),
    ],
)
def test_tails_have_the_published_totals(profile, largest, num_classes, ratio, total):
    assert sum(tail_counts(profile, largest, num_classes, ratio)) == total


def test_the_cifar10_profile_in_full():
    published = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert tail_counts("exp", 5000, 10, 100) == published


def images(counts: dict[str, int]) -> pd.DataFrame:
    rows = [(f"{c}/{i:03d}", c) for c, n in counts.items() for i in range(n)]
    return pd.DataFrame(rows, columns=["image_id", "class_id"])


def test_the_cut_is_seeded_per_class_and_blind_to_row_order():
    train, order = images({"a": 100, "b": 100, "c": 100}), ["a", "b", "c"]
    tail = Longtail(profile="exp", ratio=10, seed=3)
    cut = cut_tail(train, order, tail)
    assert cut["class_id"].value_counts().to_dict() == {"a": 100, "b": 31, "c": 10}
    assert cut.index.tolist() == list(range(141)) and cut["image_id"].is_monotonic_increasing
    assert cut_tail(train.sample(frac=1, random_state=1), order, tail).equals(cut)
    fewer = pd.concat([images({"a": 100, "c": 100}), images({"b": 90})])
    assert set(cut_tail(fewer, order, tail).query("class_id == 'c'")["image_id"]) == set(
        cut.query("class_id == 'c'")["image_id"]
    )
    fewer = pd.concat([images({"a": 90, "c": 100}), images({"b": 100})])
    less = cut_tail(fewer, order, tail)
    assert less["class_id"].value_counts().to_dict() == {"a": 90, "b": 28, "c": 9}
    for c in "bc":  # the same draw, less of it
        ids = f"class_id == '{c}'"
        assert set(less.query(ids)["image_id"]) < set(cut.query(ids)["image_id"])
    other = cut_tail(train, order, Longtail(profile="exp", ratio=10, seed=4))
    assert not other.equals(cut)


def test_a_subset_that_just_suffices_can_be_cut():
    counts = dict(zip("abcdefghij", tail_counts("exp", 500, 10, 10), strict=True))
    cut = cut_tail(images(counts), list(counts), Longtail(profile="exp", ratio=100))
    assert len(cut) == sum(tail_counts("exp", 500, 10, 100))


MNIST = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def kept(sizes: list[int], **longtail) -> list[int]:
    """Images of each class after the cut."""
    order = [f"{c:03d}" for c in range(len(sizes))]
    cut = cut_tail(images(dict(zip(order, sizes, strict=True))), order, Longtail(**longtail))
    return cut["class_id"].value_counts().reindex(order).tolist()


def test_exact_quotients_are_not_cut():
    assert tail_counts("exp", 49, 10, 49)[-1] == 1
    assert tail_counts("step", 98, 2, 49) == [98, 2]
    assert tail_counts("exp", 1000, 4, 1000) == [1000, 100, 10, 1]
    assert tail_counts("exp", 216, 4, 216) == [216, 36, 6, 1]
    assert tail_counts("step", 97, 2, 49) == [97, 1]


def test_every_whole_quotient_is_kept_at_any_ratio():
    for ratio in range(1, 400):
        for n in (1, 2, 3, 7, 50):
            assert tail_counts("exp", n * ratio, 10, ratio)[-1] == n
            assert tail_counts("step", n * ratio, 2, ratio) == [n * ratio, n]
    for factor in range(1, 20):
        powers = [3 * factor**k for k in (5, 4, 3, 2, 1, 0)]
        assert tail_counts("exp", powers[0], 6, factor**5) == powers


def test_balanced_classes_are_cut_as_published(capsys):
    assert kept([500] * 100, profile="exp", ratio=100) == tail_counts("exp", 500, 100, 100)
    assert kept([502, 499, 501, 498], profile="step", ratio=10) == [499, 499, 49, 49]
    assert "note: longtail: {profile: step, ratio: 10} starts from 499" in capsys.readouterr().out
    assert kept([500, 499, 502, 503], profile="step", ratio=10) == [499, 499, 49, 49]
    assert "because class 001 has only 499\n" in capsys.readouterr().out
    assert kept([500, 501, 501, 500], profile="step", ratio=10) == [500, 500, 50, 50]
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "profile, ratio, largest, short",
    [("exp", 100, 5923, "000"), ("exp", 1000, 5923, "000"), ("step", 100, 5842, "004")],
)
def test_the_first_class_need_not_be_the_largest(profile, ratio, largest, short, capsys):
    found = kept(MNIST, profile=profile, ratio=ratio)
    assert found == tail_counts(profile, largest, 10, ratio)
    said = capsys.readouterr().out
    assert f"starts from {largest} images in the largest class instead of 6000" in said
    assert f"because class {short} has only {largest}\n" in said


@pytest.mark.parametrize("seed", range(30))
def test_the_largest_class_is_as_large_as_the_others_allow(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 300, 12).tolist()
    profile, ratio = ("exp", "step")[seed % 2], int(rng.integers(1, 5))
    found = kept(sizes, profile=profile, ratio=ratio)
    for n in range(max(sizes), 0, -1):  # the first that fits
        counts = tail_counts(profile, n, 12, ratio)
        if all(count <= size for count, size in zip(counts, sizes, strict=True)):
            assert found == counts
            break


@pytest.mark.parametrize("sizes", [MNIST, [20, 9], [100, 3, 97], [40, 1, 1, 60]])
@pytest.mark.parametrize("profile", ["exp", "step"])
def test_a_ratio_that_is_too_large_is_refused_with_one_that_works(sizes, profile):
    with pytest.raises(UserError, match="leaves the smallest class without an image") as error:
        kept(sizes, profile=profile, ratio=6743)
    most = int(str(error.value).rpartition("at most ")[2].rstrip("."))
    assert min(kept(sizes, profile=profile, ratio=most)) == 1
    with pytest.raises(UserError, match=f"at most {most}"):
        kept(sizes, profile=profile, ratio=most + 1)
