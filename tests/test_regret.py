"""benchmarks/regret.py: the choice that is nowhere far behind, and its cost elsewhere."""

import pandas as pd
import pytest

from benchmarks import regret
from benchmarks.birds_methods import BIRDS, scores_of
from benchmarks.cifar_table import Section
from src.errors import UserError

ALL = pd.DataFrame(
    {"a": [80.0, 78, 60], "b": [50.0, 69, 70], "c": [40.0, 39, 20]},
    index=["ce", "balanced_softmax", "bbn"],
)


def test_the_worst_case_counts_and_not_the_mean():
    loss = regret.regrets(ALL)
    assert loss.loc["ce"].tolist() == [0, 20, 0]
    assert loss.loc["balanced_softmax"].tolist() == [2, 1, 1]
    assert regret.least(loss) == "balanced_softmax"
    assert regret.least(loss[["a", "c"]]) == "ce"  # where b is not known


def test_what_is_chosen_without_a_data_set_is_judged_on_it():
    rows = {row["left out"]: row for row in regret.left_out(ALL)}
    assert rows["b"]["chosen on the others"] == BIRDS["ce"].title
    assert rows["b"]["its regret there"] == 20
    assert rows["a"]["its regret there"] == 2
    assert rows["a"]["best there"] == BIRDS["ce"].title


def test_methods_count_that_every_data_set_has(tmp_path):
    out = tmp_path / "RESULTS.md"
    with pytest.raises(UserError, match="scores of 0 data sets"):
        regret.scores(out)
    facts = {"device": "cpu", "git": "abc"}
    cifar = [
        {"split": "exp100", "row": row, "seed": str(seed), "epoch": epoch, "accuracy": v} | facts
        for row, values in (("ce", (0.5, 0.6)), ("bbn", (0.7, 0.7)), ("kt", (0.9, 0.9)))
        for seed, v in enumerate(values)
        for epoch in ("last", "selected")
    ]
    Section("configs/cifar10_lt.yaml", "cpu").scores.keep(cifar, out)
    birds = [
        {"row": row, "folds": "0 1", "balanced_accuracy": 0.4} | facts for row in ("ce", "bbn")
    ]
    scores_of("birds_lt").keep(birds, out)
    table, commits = regret.scores(out)
    assert table.loc["ce"].tolist() == pytest.approx([55, 40])
    assert sorted(table.index) == ["bbn", "ce"] and commits == "abc"
    assert BIRDS["bbn"].title in regret.page(table, commits)
