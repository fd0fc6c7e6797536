"""On logits that know nothing, the judge's default keeps nothing: neither step by step nor any
step of a chain, over 50 draws with a long tail."""

import numpy as np
import pytest

from src.fusion import build_steps
from src.fusion.step import State
from src.posthoc.crossfit import no_steps, try_step
from src.posthoc.inputs import Start
from tests.fabricate import config

K, D, FOLDS, DRAWS = 8, 12, 3, 50
CHAIN = ("tau_norm", "logit_adjustment", "ncm_fusion")


def noise(seed: int) -> Start:
    """150 to 8 images a class, features and two heads that are independent of the labels."""
    rng = np.random.default_rng(seed)
    counts = np.maximum(150 * 0.05 ** (np.arange(K) / (K - 1)), 8).astype(int)
    labels = rng.permutation(np.repeat(np.arange(K), counts))
    fold = np.arange(len(labels)) % FOLDS
    features = rng.normal(size=(len(labels), D)).astype(np.float32)
    weight, means = rng.normal(size=(2, K, D)).astype(np.float32)
    bias = rng.normal(size=K).astype(np.float32)
    heads = {
        "stage1": ("linear", {"weight": weight, "bias": bias}),
        "ncm": ("cosine", {"weight": means, "scale": np.float32(10)}),
    }
    logits = features @ weight.T + bias
    states = {
        k: State(logits[fold == k], features[fold == k], "stage1", heads, counts)
        for k in range(FOLDS)
    }
    return Start("stage1", states, {k: labels[fold == k] for k in range(FOLDS)})


def kept(names: tuple[str, ...], draws: int = DRAWS, **judge) -> np.ndarray:
    """[draws, steps] which steps are kept, each tried alone."""
    settings = config(stage2=["crt", "ncm"], posthoc={"steps": list(names)}, judge=judge)
    starts = [noise(seed) for seed in range(draws)]
    return np.array(
        [[try_step(s, start, no_steps(start), settings).kept for s in build_steps(settings)]
         for start in starts]
    )  # fmt: skip


def test_of_the_default_chain_fewer_than_5_of_50_keep_anything():
    assert kept(CHAIN).any(1).sum() < 5
    assert kept(CHAIN, standard_errors=0).any(1).sum() >= 25  # the draws do tempt


@pytest.mark.parametrize("name", ["fusion", "llw", "class_scales", "max_norm"])
def test_of_any_other_step_fewer_than_5_of_50_are_kept(name):
    assert kept((name,)).sum() < 5
