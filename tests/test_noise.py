"""On logits that know nothing, the judge's default keeps nothing: neither step by step nor any
step of a chain, over 50 draws with a long tail (benchmarks/noise.py)."""

import numpy as np
import pytest

from benchmarks.noise import BARS, CHAIN, DRAWS, STEPS, gains, noise, passed
from src.config.judge import Judge
from src.fusion import build_steps
from src.posthoc.crossfit import no_steps, try_step
from tests.fabricate import config

BAR = Judge().standard_errors


@pytest.fixture(scope="module")
def starts():
    return [noise(seed) for seed in range(DRAWS)]


def test_of_the_default_chain_fewer_than_5_of_50_keep_anything(starts):
    found = gains(starts, CHAIN)
    assert (found > BAR).any(1).sum() < 5
    assert (found > 0).any(1).sum() >= 25  # the draws do tempt


@pytest.mark.parametrize("name", STEPS[len(CHAIN) :])
def test_of_any_other_step_fewer_than_5_of_50_are_kept(starts, name):
    assert (gains(starts, (name,)) > BAR).sum() < 5


def test_what_is_counted_is_what_04_keeps(starts):
    steps = {"stage2": ["crt", "ncm"], "posthoc": {"steps": ["tau_norm"]}}
    found = gains(starts[:8], ("tau_norm",))[:, 0]
    for times in (0.5, 1.0):
        settings = config(judge={"standard_errors": times}, **steps)
        kept = [
            try_step(build_steps(settings)[0], s, no_steps(s), settings).kept for s in starts[:8]
        ]
        assert kept == (found > times).tolist()
    assert (found > 0.5).any() and not (found > 0.5).all()


def test_a_row_counts_draws_and_for_the_chain_any_of_its_steps():
    found = np.zeros((3, len(STEPS)))
    found[0, :2], found[1, 4] = 1.8, 9.0
    rows = {row["standard errors"]: row for row in passed(found)}
    assert len(rows) == len(BARS)
    assert rows["1.64"]["the chain"] == rows["1.64"]["tau_norm"] == rows["2.5"]["llw"] == 1
    assert rows["2"]["the chain"] == 0 and rows["1"]["logit_adjustment"] == 1
