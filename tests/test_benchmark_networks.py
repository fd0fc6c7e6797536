"""benchmarks/networks.py: what is set against what, on networks of a few thousand weights."""

import pytest
import torch

from benchmarks import networks
from benchmarks.networks import BOXES, CASES, PARTS, Case, Clock, Step, compare
from src.networks.mmal import MMAL
from src.networks.plain import Plain

CPU = torch.device("cpu")
TINY = {"backbone": "cifar_resnet20", "image_size": 64}
MMAL_CASE = Case("tiny", TINY | {"network": "mmal"}, 2, passes=(PARTS, PARTS[:2]), own=BOXES)


def test_a_network_and_the_plain_one_with_its_passes():
    own, plain = Step(MMAL_CASE, False, CPU), Step(MMAL_CASE, True, CPU)
    assert type(own.network) is MMAL and type(plain.network) is Plain
    assert [plain.images(*p).images.shape[::2] for p in PARTS] == [(2, 64), (2, 64), (14, 32)]
    assert own.network.windows.count == PARTS[-1][0]  # parts that the network makes itself
    with Clock(own, BOXES) as clock:
        seconds = own.training()
    assert 0 < clock.seconds < seconds
    assert not Clock(own, BOXES).seconds and not hasattr(own.network.windows.forward, "seconds")


def test_ratios_are_of_both_and_memory_is_of_one(monkeypatch):
    found = compare(MMAL_CASE, 2, CPU)
    assert set(found) == {"training", "inference", "own"}
    assert found["training"] > 0.2 and 0 < found["own"] < 1
    if not networks.Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory of a process is read from Linux's /proc")
    assert networks.peak(MMAL_CASE, False, CPU) >= 0


def test_a_plain_vision_transformer_has_the_same_patches():
    vit = {"backbone": "vit_tiny_patch16_224", "image_size": 32, "network": "transfg"}
    vit["kwargs"] = {"depth": 2, "embed_dim": 24, "patch_size": 8}
    vit["network"] = {"name": "transfg", "stride": 4}
    case = Case("tiny", vit, 1, stride=4)
    grids = [Step(case, p, CPU).network.backbone.patch_embed.grid_size for p in (True, False)]
    assert grids == [(7, 7), (7, 7)]


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_one_that_the_product_takes(name):
    from src.config.read import parse_config

    case = CASES[name]
    config = parse_config({"model": {"pretrained": False} | case.model, "train": case.train})
    assert config.model.network.name != "plain"
