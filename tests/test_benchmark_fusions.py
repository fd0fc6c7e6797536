"""benchmarks/fusions.py: gains over the head as trained, and what a bar would have kept."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.fusions import agreement, by_rule, gains_of


def rows() -> pd.DataFrame:
    """Two heads of .5 and .6; steps that gain 10, 4 and -2 points out of fold, half on test."""
    lines = []
    for head, start in (("a", 0.5), ("b", 0.6)):
        for step, gain in (("", 0.0), ("tau_norm", 0.10), ("llw", 0.04), ("fusion", -0.02)):
            lines.append({
                "experiment": "exp", "head": head, "step": step,
                "oof_balanced_accuracy": start + gain, "test_balanced_accuracy": start + gain / 2,
                "kept": {"": "", "tau_norm": "yes"}.get(step, "no"), "gain_se": 0.021,
            })  # fmt: skip
    return pd.DataFrame(lines)


def test_gains_are_over_the_head_as_trained():
    found = gains_of(rows())
    assert found["oof_gain"].to_numpy() == pytest.approx([0, 0.1, 0.04, -0.02] * 2)
    assert found["test_gain"].to_numpy() == pytest.approx([0, 0.05, 0.02, -0.01] * 2)


def test_agreement_says_what_kept_and_other_steps_gain():
    said = agreement(gains_of(rows()))
    assert said.startswith("6 steps on heads; cross-fitted and test gain correlate with r = 1.00")
    assert "+10.0 points out of fold and +5.0 on test for the 2 kept" in said
    assert "+1.0 points out of fold and +0.5 on test for the 4 others" in said
    none = rows().replace({"kept": {"yes": "no"}})
    assert "kept" not in agreement(gains_of(none)) and "nan" not in agreement(gains_of(none))
    assert "too few" in agreement(gains_of(rows()[:3]))


def test_what_a_bar_would_have_kept():
    found = {row["standard errors"]: row for row in by_rule(gains_of(rows()))}
    assert [found[bar]["kept"] for bar in ("0", "1.64", "2", "3")] == [4, 4, 2, 2]
    assert found["3"]["mean test gain of kept"] == pytest.approx(5)
    assert found["3"]["of dropped"] == pytest.approx(np.mean([2, -1]))
    assert found["0"]["best step per head, mean test gain over heads"] == pytest.approx(5)
    assert found["0"]["worse on test"] == 0
