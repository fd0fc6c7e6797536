"""BBN: two branches, cumulative learning, warm start."""

import re

import pytest
import torch
from torch.nn import functional as F

from src.config.model import Model
from src.config.networks import BBN
from src.config.read import parse_config
from src.config.tree import dump_config
from src.data.dataset import Batch
from src.errors import UserError
from src.networks.base import Progress
from src.networks.bbn import alpha
from src.networks.build import build_network
from src.networks.weights import load_network, load_pretrained
from tests.fabricate import some_classes
from tests.training_kit import (
    random_batch,
    resumes_exactly,
    tiny_config,
    tiny_dataset,
    train_tiny,
)

K, D = 6, 64
FIRST = Progress(0, 0, 0.0, 10)


def bbn(alpha="decay", backbone="cifar_resnet20", **keys):
    torch.manual_seed(0)
    model = Model(backbone=backbone, network=BBN(alpha=alpha), pretrained=False, **keys)
    network, _ = build_network(model, some_classes(K))
    with torch.no_grad():  # apart, as after some training
        for p in network.rebalancing.parameters():
            p.add_(0.05 * torch.randn_like(p))
        network.classifier.weight.normal_(std=0.3)
    return network


def two_streams():
    images, labels = random_batch(seed=1)
    others, other_labels = random_batch(seed=2)
    return Batch(images, labels, other=Batch(others, other_labels.flip(0)))


@pytest.mark.parametrize(
    "epochs, t_max, last", [(90, 100, 0.2079), (180, 200, 0.1990), (200, None, 0.009975)]
)
def test_alpha_of_the_authors_schedules(epochs, t_max, last):
    settings = BBN(t_max=t_max)
    assert alpha(settings, Progress(0, 0, 0.0, epochs)) == 1
    assert alpha(settings, Progress(epochs - 1, 0, 0.0, epochs)) == pytest.approx(last, abs=1e-4)


def test_alpha_never_falls_below_zero_and_can_be_fixed():
    assert alpha(BBN(t_max=5), Progress(9, 0, 0.0, 10)) == 0
    assert alpha(BBN(alpha=0.3), Progress(9, 0, 0.0, 10)) == 0.3


def test_alpha_one_is_plain_training_of_the_conventional_branch():
    network, batch = bbn(alpha=1.0), two_streams()
    terms, _ = network.loss(batch, F.cross_entropy, FIRST)
    sum(terms.values()).backward()
    assert terms["rebalancing"] == 0
    assert all(not p.grad.any() for p in network.rebalancing.parameters())
    found = {name: p.grad.clone() for name, p in network.backbone.named_parameters()}

    plain = bbn(alpha=1.0)
    weight, bias = plain.classifier.weight[:, :D], plain.classifier.bias
    loss = F.cross_entropy(F.linear(2 * plain.backbone(batch.images), weight, bias), batch.labels)
    loss.backward()
    assert terms["conventional"].item() == pytest.approx(loss.item(), abs=1e-6)
    for name, p in plain.backbone.named_parameters():
        torch.testing.assert_close(found[name], p.grad, atol=1e-6, rtol=1e-4)


def test_alpha_zero_trains_the_other_branch_on_the_other_images():
    network, batch = bbn(alpha=0.0), two_streams()
    terms, _ = network.loss(batch, F.cross_entropy, FIRST)
    sum(terms.values()).backward()
    assert terms["conventional"] == 0
    assert all(not p.grad.any() for p in network.backbone.layer3[-1].parameters())
    assert all(p.grad.any() for p in network.rebalancing[0].parameters())
    assert network.backbone.conv1.weight.grad.any()
    batch.images = torch.zeros_like(batch.images)
    again, _ = bbn(alpha=0.0).loss(batch, F.cross_entropy, FIRST)
    assert again["rebalancing"].item() == pytest.approx(terms["rebalancing"].item(), abs=1e-6)


def test_inference_is_what_training_computes_at_one_half():
    network = bbn(alpha=0.5).eval()
    images, labels = random_batch()
    batch = Batch(images, labels, other=Batch(images, labels))
    _, trained = network.loss(batch, F.cross_entropy, FIRST)
    output = network(images)
    torch.testing.assert_close(output.logits, trained.logits)
    assert output.features.shape == (len(images), 2 * D)
    torch.testing.assert_close(network.classifier(output.features), output.logits)


def test_loss_is_weighted_by_alpha_with_any_criterion():
    network, batch = bbn(alpha=0.25), two_streams()
    terms, output = network.loss(batch, lambda logits, labels: labels.float().mean(), FIRST)
    assert terms["conventional"].item() == pytest.approx(0.25 * batch.labels.float().mean().item())
    assert terms["rebalancing"].item() == pytest.approx(
        0.75 * batch.other.labels.float().mean().item()
    )


def test_the_loss_between_the_ends_by_hand():
    """α = .25: z = W [2 · .25 f_c ; 2 · .75 f_r] + b, L = .25 CE(z, y_c) + .75 CE(z, y_r)."""
    network, batch = bbn(alpha=0.25).eval(), two_streams()
    terms, output = network.loss(batch, F.cross_entropy, FIRST)
    f_c, f_r = network(batch.images).features[:, :D], network(batch.other.images).features[:, D:]
    head = network.classifier
    z = F.linear(torch.cat([0.5 * f_c, 1.5 * f_r], 1), head.weight, head.bias)
    torch.testing.assert_close(output.logits, z)
    want = [0.25 * F.cross_entropy(z, batch.labels), 0.75 * F.cross_entropy(z, batch.other.labels)]
    found = [terms["conventional"], terms["rebalancing"]]
    torch.testing.assert_close(torch.stack(found), torch.stack(want))


def test_the_gradient_of_the_loss_to_the_features_of_both_branches(double):
    network, batch = bbn(alpha=0.3).double(), two_streams()
    network._trunk = network._conventional = network._rebalancing = lambda features: features
    f_c, f_r = torch.randn(2, 8, D, dtype=torch.float64, requires_grad=True)
    weight = network.classifier.weight

    def loss(f_c, f_r, weight):
        batch.images, batch.other.images = f_c, f_r
        return sum(network.loss(batch, F.cross_entropy, FIRST)[0].values())

    f_c, f_r = f_c.detach().requires_grad_(), f_r.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, (f_c, f_r, weight), fast_mode=True)


@pytest.mark.parametrize("backbone", ["cifar_resnet20", "resnet18", "resnet50", "mobilenetv2_100"])
@pytest.mark.parametrize("anti_alias", [False, True])
def test_the_cut_backbone_computes_what_the_whole_one_does(backbone, anti_alias):
    model = Model(backbone=backbone, network="bbn", pretrained=False, anti_alias=anti_alias)
    network = build_network(model, some_classes(K))[0].eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        both, whole = network(images).features, network.backbone(images)
    torch.testing.assert_close(both, torch.cat([whole, whole], 1))  # fresh branches are equal


def test_a_backbone_without_residual_blocks_is_refused():
    with pytest.raises(UserError, match="VisionTransformer"):
        build_network(
            Model(backbone="vit_tiny_patch16_224", network="bbn", pretrained=False), some_classes(K)
        )


@pytest.mark.parametrize(
    "train, words",
    [
        ({}, "second_sampler=reversed"),
        ({"second_sampler": "reversed", "compile": True}, "its parts one by one"),
        ({"second_sampler": "reversed", "criterion": {"name": "balanced_softmax"}}, "class prior"),
        ({"second_sampler": "instance", "criterion": {"name": "lade"}}, "all images of a batch"),
        ({"second_sampler": "reversed", "mixing": {"mixup": 1.0}}, "mixes the losses"),
        ({"second_sampler": "reversed", "auxiliaries": [{"name": "frequency"}]}, "different imag"),
    ],
)
def test_config_refuses_what_makes_no_sense(train, words):
    with pytest.raises(UserError, match=words):
        tiny_config({"network": "bbn"}, train)


@pytest.mark.parametrize(
    "model, words",
    [
        (
            {"bbn": {"alpha": 0.5}},
            "`bbn` is no key any more: its keys stand in model.network: {name: bbn, …}",
        ),
        ({"network": {"name": "kt", "experts": 4}}, "unknown key `model.network.experts`"),
        ({"network": {"phi": 0.5}}, "it needs 'name', one of plain, bbn, kt"),
        ({"network": {"name": "pako"}}, "did you mean 'paco'?"),
        ({"network": "rid"}, "did you mean 'ride'?"),
        ({"network": {"name": "bbn", "alpha": 0.5, "t_max": 9}}, "remove t_max"),
    ],
)
def test_keys_that_another_network_reads_are_refused(model, words):
    with pytest.raises(UserError, match=re.escape(words)):
        tiny_config(model, {"second_sampler": "reversed"})


def test_a_dump_names_every_networks_keys_and_is_taken():
    train = {"second_sampler": "reversed"}
    for keys in ({"alpha": 0.5}, {"t_max": 9}):
        config = tiny_config({"network": {"name": "bbn"} | keys}, train)
        assert parse_config(dump_config(config)) == config


def test_weights_of_a_plain_network_go_into_both_branches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    plain = train_tiny(tiny_config(train={"epochs": 2}), "plain")
    reversed_stream = {"epochs": 2, "second_sampler": "reversed"}
    source = {"network": "bbn", "pretrained": "experiment:plain"}
    config = tiny_config(source, reversed_stream)
    network, _ = build_network(config.model, some_classes(K))
    said = str(load_pretrained(network, config.model, "tiny", "fold0"))
    assert "other shape: classifier.* (2)" in said
    block = load_network(plain / "weights.safetensors", data)[0].backbone.layer3[-1]
    for key, tensor in block.state_dict().items():
        torch.testing.assert_close(network.backbone.layer3[-1].state_dict()[key], tensor)
        torch.testing.assert_close(network.rebalancing[0].state_dict()[key], tensor)

    trained = train_tiny(config, "bbn")  # and a BBN checkpoint keeps its two different branches
    config = tiny_config(source | {"pretrained": "experiment:bbn"}, reversed_stream)
    network, _ = build_network(config.model, some_classes(K))
    said = str(load_pretrained(network, config.model, "tiny", "fold0"))
    own = load_network(trained / "weights.safetensors", data)[0].state_dict()
    assert "left new" not in said
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(own[key], tensor)


def test_a_file_of_backbone_weights_goes_into_both_branches(tmp_path):
    backbone = build_network(Model(backbone="resnet18", pretrained=False), some_classes(K))[
        0
    ].backbone
    torch.save(backbone.state_dict(), tmp_path / "weights.pt")
    model = Model(backbone="resnet18", network="bbn", pretrained=str(tmp_path / "weights.pt"))
    network, _ = build_network(model, some_classes(K))
    load_pretrained(network, model, "tiny", "fold0")
    expected = backbone.layer4[-1].conv1.weight
    torch.testing.assert_close(network.rebalancing[0].conv1.weight, expected)
    torch.testing.assert_close(network.backbone.layer4[-1].conv1.weight, expected)


def test_a_killed_run_goes_on_with_its_alpha(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    config = tiny_config({"network": "bbn"}, {"second_sampler": "reversed", "ema": 0.9})
    whole = resumes_exactly(config, monkeypatch)  # asserts that the bytes are equal
    assert (whole / "manifest.json").is_file()
