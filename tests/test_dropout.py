"""Dropout and drop path by config: every network trains with them, and predicts without."""

import pytest
import torch
from timm.layers import DropPath

from src.config.model import Model
from src.data.dataset import Batch
from src.errors import UserError
from src.losses import build_criterion
from src.networks import build_network
from src.networks.base import Network, Progress
from tests.fabricate import some_classes
from tests.test_every_network import METHODS
from tests.training_kit import random_batch, tiny_config, tiny_dataset

NETWORKS = ["bbn", "kt", "mmal", "paco", "ride", "task_separator", "gem_neck", "transfg", "fbsd"]
VIT = METHODS["transfg"][0]
SMALL = {"stem_width": 8, "channels": [8, 8, 16, 16], "output_stride": 8}
RESNET = {  # two blocks per stage, none of them the identity, and a last map of 8 × 8
    "backbone": "resnet26t",
    "kwargs": SMALL | {"zero_init_last": False},
    "image_size": 64,
}
KINDS = {"plain": "plain", "transfg": VIT["network"]}
RATES = ("pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate")


@pytest.fixture
def classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    return data.classes_of(data.images)


def losses(name: str, model: dict, classes) -> tuple[Network, list[dict[str, torch.Tensor]]]:
    """A network, and what its loss of one batch is before any step: twice with one seed of what is
    dropped, and with another."""
    keys, train = METHODS.get(name, ({}, {}))
    config = tiny_config(keys | model, {k: v for k, v in train.items() if k != "mixing"})
    size, progress, found = config.model.image_size, Progress(1, 0, 0.5, 2), []
    images = torch.randn(2, 8, 3, size, size, generator=torch.Generator().manual_seed(0))
    labels = random_batch()[1]
    batch = Batch(images[0], labels, other=Batch(images[1], labels))
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        network = build_network(config.model, classes)[0].train()
        criterion = build_criterion(config, classes)
        criterion.set_progress(progress)
        torch.manual_seed(seed)
        found.append(network.loss(batch, criterion, progress)[0])
    return network, found


def unmoved(terms: list[dict[str, torch.Tensor]]) -> set[str]:
    """Terms that chance does not change; a seed repeats them all."""
    one, again, other = terms
    assert all(torch.equal(one[name], again[name]) for name in one)
    return {name for name in one if torch.equal(one[name], other[name])}


def predicts_without_chance(network: Network, size: int) -> None:
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        one, two = (network.eval()(images).logits for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_before_every_head(name, classes):
    neck = {"neck": {"width": 16}} if name == "gem_neck" else {}  # without a dropout of its own
    every = set(losses(name, neck, classes)[1][0])
    network, terms = losses(name, neck | {"dropout": 0.5}, classes)
    of_features = {"contrast"} if name == "transfg" else set()
    assert unmoved(terms) == of_features and every > of_features
    predicts_without_chance(network, 16)


@pytest.mark.parametrize("name", NETWORKS)
def test_drop_path_is_in_every_copy_of_every_block(name, classes):
    model = {"drop_path": 0.5} | (RESNET if name != "transfg" else {})
    if name == "fbsd":  # three scales: last maps of 8 × 8, 4 × 4 and 2 × 2
        model["kwargs"] = model["kwargs"] | {"output_stride": 32}
    network, terms = losses(name, model, classes)
    assert not unmoved(terms)
    for body in network.bodies():
        rates = [m.drop_prob for m in body.module.modules() if isinstance(m, DropPath)]
        assert max(rates) == pytest.approx(0.5)  # of the last block, which all copies have
    predicts_without_chance(network, model.get("image_size", 16))


@pytest.mark.parametrize("name", ["bbn", "transfg"])
def test_nothing_is_dropped_unasked(name, classes):
    model = RESNET if name != "transfg" else {}
    network, terms = losses(name, model, classes)
    assert unmoved(terms) == terms[0].keys()
    assert not any(isinstance(m, DropPath) for m in network.modules())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", RATES)
def test_a_vision_transformer_drops_what_its_kwargs_say(kind, rate, classes):
    """Tokens, attention and what blocks add, by timm's own names."""
    size = {"img_size": 16} if kind == "plain" else {}
    keys = VIT["kwargs"] | size | {rate: 0.5}
    network, terms = losses(kind, VIT | {"kwargs": keys, "network": KINDS[kind]}, classes)
    assert not unmoved(terms)
    predicts_without_chance(network, 16)


@pytest.mark.parametrize("name", ["vgg11", "densenet121", "cifar_resnet20"])
def test_a_backbone_without_blocks_to_skip_says_so(name):
    with pytest.raises(UserError) as error:
        build_network(Model(backbone=name, pretrained=False, drop_path=0.1), some_classes(5))
    assert "drop_path" in str(error.value) and name in str(error.value)
    assert "model.kwargs" not in str(error.value)  # which nobody set


def test_one_key_sets_drop_path():
    with pytest.raises(UserError, match="kwargs.drop_path_rate is what drop_path sets"):
        tiny_config({"drop_path": 0.1, "kwargs": {"drop_path_rate": 0.2}})
    tiny_config({"kwargs": {"drop_path_rate": 0.2}})  # as it always was
