"""Labels, bins and the artificial tail, against values worked out by hand or published."""

import numpy as np
import pandas as pd
import pytest

from src.errors import UserError
from src.prepare.classes import assign_bins, class_lines, class_order, class_table
from src.prepare.longtail import cut_tail, tail_counts
from src.schema import Bins, Longtail


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
    assert cut_tail(train.sample(frac=1, random_state=1), order, tail).equals(cut)
    fewer = pd.concat([images({"a": 100, "c": 100}), images({"b": 90})])
    assert set(cut_tail(fewer, order, tail).query("class_id == 'c'")["image_id"]) == set(
        cut.query("class_id == 'c'")["image_id"]
    )
    other = cut_tail(train, order, Longtail(profile="exp", ratio=10, seed=4))
    assert not other.equals(cut)


def test_a_subset_that_just_suffices_can_be_cut():
    counts = dict(zip("abcdefghij", tail_counts("exp", 500, 10, 10), strict=True))
    cut = cut_tail(images(counts), list(counts), Longtail(profile="exp", ratio=100))
    assert len(cut) == sum(tail_counts("exp", 500, 10, 100))


def test_classes_that_are_too_small_for_the_profile_are_named():
    with pytest.raises(UserError, match="'b has 9 of 10'.*Raise longtail.ratio"):
        cut_tail(images({"a": 20, "b": 9}), ["a", "b"], Longtail(profile="exp", ratio=2))
    with pytest.raises(UserError, match="ratio of at most 20"):
        cut_tail(images({"a": 20, "b": 9}), ["a", "b"], Longtail(profile="step", ratio=50))
