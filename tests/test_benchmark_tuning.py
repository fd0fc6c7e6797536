"""benchmarks/tuning.py: what is set against what, on a transformer of a few thousand weights."""

from pathlib import Path

import pytest
import torch

from benchmarks.tuning import CASES, FULL, Step, config_of, on_disk, peak, ratio
from src.networks.tuning.prefix import first_trained

CPU = torch.device("cpu")
TINY = {
    "image_size": 16,
    "kwargs": {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 16},
}


@pytest.mark.parametrize("name", CASES)
def test_every_case_trains_what_it_says_and_its_files_hold_that(name, tmp_path):
    case = CASES[name]
    assert ratio(case, 2, 1, CPU, TINY) > 0
    train, every, weights, last = on_disk(case, tmp_path, TINY)
    assert train < every and 4 * train < 1e6 * weights < 4 * train + 20_000 < 1e6 * last + 20_000
    full = on_disk(FULL, tmp_path, TINY)
    assert full[0] == full[1] and full[2] > weights and full[3] > last
    step = Step(case, 2, CPU, TINY)
    before = {n: p.clone() for n, p in step.network.named_parameters()}
    step.run()
    same = {n for n, p in step.network.named_parameters() if torch.equal(p, before[n])}
    assert {n for n, p in step.network.named_parameters() if not p.requires_grad} <= same
    assert not torch.equal(step.network.classifier.weight, before["classifier.weight"])
    assert not case.kept or (first_trained(step.network.backbone), step.images.ndim) == (2, 3)


def test_the_recipe_is_that_of_lift():
    config = config_of(CASES["adaptformer"], {})
    assert (config.model.head, config.model.cosine_scale, config.model.image_size) == (
        "cosine",
        25,
        224,
    )
    assert config.train.criterion.name == "logit_adjusted" and config.train.lr == 0.01


def test_peak_memory_is_of_this_process():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory of a process is read from Linux's /proc")
    assert peak(FULL, 2, CPU, TINY) >= 0
