"""`model.dropout` and `model.drop_path` reach every part of every network, or are refused."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from timm.layers import DropPath

from src.config.model import Model
from src.data.dataset import Batch
from src.errors import UserError
from src.losses import build_criterion
from src.networks.base import Progress
from src.networks.build import NETWORKS, build_network
from tests.fabricate import some_classes
from tests.test_every_network import METHODS
from tests.training_kit import tiny_config

RESNET = {"backbone": "test_resnet", "image_size": 64}
DEEPER = {
    "backbone": "resnet26t",
    "image_size": 64,
}  # two blocks a stage, last map 8 x 8
DEEPER["kwargs"] = {"stem_width": 8, "channels": [8, 8, 16, 16], "output_stride": 8}
PLACES = {"transfg": {}, "mmal": DEEPER}  # transfg's own has blocks to skip


def built(kind: str, **keys):
    """A network of this kind, and the terms of its loss by the seed of the dropping."""
    model, train = ({}, {}) if kind == "plain" else METHODS[kind]
    config = tiny_config(model | keys, train)
    torch.manual_seed(0)
    classes = some_classes(6, np.array([0, 0, 1, 1, 2, 2]))
    network, _ = build_network(config.model, classes)
    for p in network.parameters():  # heads and last layers of blocks that begin at zero say nothing
        torch.nn.init.normal_(p, mean=0.0, std=0.1) if not p.any() or p.std() < 0.02 else p
    criterion = build_criterion(config, classes)
    size = config.model.image_size
    images, others = torch.randn(2, 12, 3, size, size)
    labels = torch.arange(12) % 6
    batch = Batch(images, labels, other=Batch(others, labels.flip(0)))

    def terms(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        again = deepcopy(network).train()  # as memories and queues move
        return again.loss(batch, criterion, Progress(1, 0, 0.5, 2))[0]

    return network, terms


def moved(terms) -> set[str]:
    """Names of terms that differ between two seeds."""
    one, two = terms(1), terms(2)
    return {name for name in one if not torch.equal(one[name], two[name])}


@pytest.mark.parametrize("kind", NETWORKS)
def test_dropout_is_before_the_heads_of_every_network(kind):
    assert not moved(built(kind, dropout=0.0)[1])
    network, terms = built(kind, dropout=0.5)
    before = {"contrast"} if kind == "transfg" else set()  # it is of the features
    assert moved(terms) == terms(1).keys() - before
    network.eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(network(images).logits, network(images).logits)


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "clip"])
def test_drop_path_is_in_every_body(kind):
    place = PLACES.get(kind, RESNET)
    assert not moved(built(kind, **place)[1])
    network, terms = built(kind, **place, drop_path=0.5)
    for body in network.bodies():
        rates = [m.drop_prob for m in body.module.modules() if isinstance(m, DropPath)]
        assert rates and max(rates) == 0.5
    assert moved(terms) == terms(1).keys()


def test_towers_of_open_clip_skip_no_block_and_say_so():
    pytest.importorskip("open_clip")
    with pytest.raises(UserError, match="model.drop_path is of timm's models"):
        built("clip", drop_path=0.5)


@pytest.mark.parametrize("backbone", ["vgg11", "densenet121"])
def test_a_backbone_without_drop_path_is_refused(backbone):
    model = Model(backbone=backbone, pretrained=False, drop_path=0.1)
    with torch.device("meta"), pytest.raises(UserError) as error:
        build_network(model, some_classes(3))
    says = f"model.drop_path=0.1: {backbone} has no blocks that it could skip"
    assert says in str(error.value)


def test_other_arguments_that_a_backbone_does_not_take_are_named_as_such():
    model = Model(backbone="resnet18", pretrained=False, drop_path=0.1, kwargs={"nonsense": 1})
    with torch.device("meta"), pytest.raises(UserError, match="model.kwargs: resnet18 does not"):
        build_network(model, some_classes(3))
