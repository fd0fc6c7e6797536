"""The neck: what it computes, whose features it makes, and what it is refused with."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from src.config.model import Neck
from src.config.read import parse_config
from src.errors import UserError
from src.logits import head_logits
from src.networks.build import build_network
from src.networks.neck import build_neck
from src.networks.weights import load_network
from tests.fabricate import some_classes
from tests.training_kit import random_batch, resumes_exactly, tiny_config, tiny_dataset

BINS = np.arange(6) % 3


def test_a_layer_then_batch_norm():
    torch.manual_seed(0)
    neck, width = build_neck(Neck(width=3), 5)
    f = torch.randn(7, 5)
    lower = f @ neck[1].weight.T  # no bias: the norm has one
    want = (lower - lower.mean(0)) / (lower.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(neck(f), want)
    assert width == 3 and neck[1].bias is None
    plain, _ = build_neck(Neck(width=3, norm=False), 5)
    torch.testing.assert_close(plain(f), F.linear(f, plain[1].weight, plain[1].bias))
    same, width = build_neck(None, 5)
    assert width == 5 and same(f) is f and not list(same.parameters())


def test_dropout_is_before_the_layer_and_for_training_alone():
    neck, _ = build_neck(Neck(width=2, norm=False, dropout=0.5), 1000)
    neck[1].weight.data.fill_(1.0)
    neck[1].bias.data.zero_()
    ones = torch.ones(1, 1000)
    found = neck(ones)
    assert found[0, 0] == found[0, 1] and found[0, 0] % 2 == 0  # one mask of the pooled features
    assert found[0, 0] != 1000 and neck.eval()(ones)[0, 0] == 1000


@pytest.mark.parametrize("name", ["plain", "kt", "paco", "task_separator"])
def test_what_the_neck_gives_are_the_features(name):
    train = {"paco": {"second_sampler": "same", "criterion": "balanced_softmax"}}.get(name, {})
    config = tiny_config({"network": name, "neck": {"width": 10}}, train)
    network, _ = build_network(config.model, some_classes(6, bins=BINS))
    network.eval()
    images = random_batch()[0]
    out = network(images)
    assert out.features.shape == (8, 10) and network.width == 10
    torch.testing.assert_close(out.features, network.neck(network.backbone(images)))
    if name != "task_separator":  # whose logits are an expert's
        kind, arrays = network.heads()[""]
        found = head_logits(out.features.detach().numpy(), arrays, kind)
        np.testing.assert_allclose(found, out.logits.detach(), atol=1e-4)


@pytest.mark.parametrize(
    ("model", "train", "words"),
    [
        ({"network": "ride"}, {}, "as in plain, kt, paco, task_separator"),
        ({"network": "bbn"}, {"second_sampler": "reversed"}, "several of these, remove it"),
        ({}, {"micro_batch": 1}, "set model.neck.norm=false"),
    ],
)
def test_where_it_has_no_place_it_is_refused(model, train, words):
    with pytest.raises(UserError, match=words):
        parse_config({"model": model | {"neck": {}}, "train": train})
    parse_config({"model": model, "train": train})
    parse_config({"model": {"neck": {"norm": False}}, "train": {"micro_batch": 1}})


def test_its_statistics_are_trained_saved_and_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    config = tiny_config(
        {"neck": {"width": 6, "dropout": 0.2}, "head": "cosine", "dropout": 0.1},
        {"criterion": "cosface", "ema": 0.9, "micro_batch": 4},
    )
    network, _ = load_network(resumes_exactly(config, monkeypatch) / "weights.safetensors", data)
    assert network.width == 6 and network.neck[2].running_mean.any()
