"""RIDE: the loss by hand and its limits, one linear head for all that follows, warm start."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from src.artifacts.heads import SHAPES, load_head
from src.config.model import Model
from src.data.dataset import Batch
from src.errors import UserError
from src.logits import head_logits
from src.networks.base import Progress
from src.networks.build import build_network
from src.networks.ride import divergence
from src.networks.weights import load_network, load_pretrained
from tests.fabricate import some_classes
from tests.training_kit import random_batch, resumes_exactly, tiny_config, tiny_dataset, train_tiny

K = 6
FIRST = Progress(0, 0, 0.0, 4)
COPIES = {"pretrained": "weights that a test does not load"}  # experts begin as copies


def ride(backbone="cifar_resnet20", pretrained=False, settings=None, **keys):
    torch.manual_seed(0)
    network = {"name": "ride"} | (settings or {})
    model = Model(backbone=backbone, network=network, pretrained=pretrained, **keys)
    network = build_network(model, some_classes(K))[0]
    with torch.no_grad():  # apart, as after some training
        for head in network.classifier.heads:
            head.weight.normal_(std=0.3)
            if head.kind == "linear":
                head.bias.normal_()
    return network


def some_logits(experts=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(experts, 5, 4, generator=generator, dtype=torch.float64)


def test_divergence_by_hand():
    """Two experts that trust opposite classes with 0.8; their mean is undecided."""
    logits = torch.log(torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]]))
    one = 0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2)
    assert divergence(logits, 1.0).item() == pytest.approx(2 * one, abs=1e-6)
    soft = 0.5 * np.log(0.5 / (2 / 3)) + 0.5 * np.log(0.5 / (1 / 3))  # roots of 0.8 and 0.2
    assert divergence(logits, 2.0).item() == pytest.approx(4 * 2 * soft, abs=1e-6)
    twice = torch.cat([logits, torch.zeros_like(logits)], 1)  # an image on which they agree
    assert divergence(twice, 1.0).item() == pytest.approx(one, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_divergence_is_what_the_logarithms_of_sums_say(temperature):
    logits = some_logits()
    z = logits / temperature
    gap = z.logsumexp(2).sum(0) - len(z) * z.mean(0).logsumexp(1)
    expected = temperature**2 * gap.mean()
    torch.testing.assert_close(divergence(logits, temperature), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gradient_of_the_divergence_is_bounded_and_needs_no_stopping(temperature):
    logits = some_logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: divergence(z, temperature), logits)
    divergence(logits, temperature).backward()
    with torch.no_grad():  # T (p_e - mean's p), as if the mean were a constant
        each = (logits / temperature).softmax(2)
        mean = (logits.mean(0) / temperature).softmax(1)
        torch.testing.assert_close(logits.grad, temperature * (each - mean) / logits.shape[1])


def test_divergence_ignores_what_softmax_ignores_and_the_order_of_experts():
    logits = some_logits()
    expected = divergence(logits, 1.5)
    shift = torch.randn(3, 5, 1, dtype=torch.float64)
    torch.testing.assert_close(divergence(logits + shift, 1.5), expected)
    torch.testing.assert_close(divergence(logits[[2, 0, 1]], 1.5), expected)
    torch.testing.assert_close(divergence(logits[:, :, [3, 1, 0, 2]], 1.5), expected)


def test_divergence_grows_from_zero_as_experts_move_away_from_their_mean():
    logits = some_logits()
    mean = logits.mean(0)
    found = [divergence(mean + t * (logits - mean), 1.0).item() for t in (0, 0.5, 1, 2, 4)]
    assert found[0] == pytest.approx(0, abs=1e-12)
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("diversity", [0.0, 0.45, 1.0])
def test_the_loss_lies_between_experts_alone_and_their_mean_alone(diversity):
    network = ride(settings={"diversity": diversity})
    images, labels = random_batch()
    terms, output = network.loss(Batch(images, labels), F.cross_entropy, FIRST)
    logits = network.classifier.each(output.features)
    alone = sum(F.cross_entropy(z, labels) for z in logits)
    together = 3 * F.cross_entropy(logits.mean(0), labels)
    assert terms["criterion"].item() == pytest.approx(alone.item(), rel=1e-6)
    expected = (1 - diversity) * alone + diversity * together
    assert sum(terms.values()).item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(output.logits, logits.mean(0))


def test_equal_experts_are_one_network_that_is_not_rewarded():
    network = ride(**COPIES)
    for head in network.classifier.heads:
        head.load_state_dict(network.classifier.heads[0].state_dict())
    images, labels = random_batch()
    terms, output = network.loss(Batch(images, labels), F.cross_entropy, FIRST)
    plain = F.cross_entropy(network.classifier.heads[0](network.backbone(images)), labels)
    assert terms["criterion"].item() == pytest.approx(3 * plain.item(), rel=1e-5)
    assert terms["diversity"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("backbone", ["cifar_resnet20", "resnet18", "mobilenetv2_100"])
def test_logits_are_those_of_one_linear_head_on_the_features(backbone, head):
    network = ride(backbone, head=head, dropout=0.3).eval()
    with torch.no_grad():
        output = network(torch.randn(4, 3, 64, 64))
    arrays = {name: array.numpy() for name, array in network.classifier.arrays().items()}
    assert set(arrays) == set(SHAPES[network.classifier.kind])
    assert arrays["weight"].shape == (K, output.features.shape[1])
    expected = head_logits(output.features.numpy(), arrays, network.classifier.kind)
    np.testing.assert_allclose(output.logits.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert output.logits.abs().max() > 0.1


def test_cosine_experts_stay_within_the_scale():
    network = ride(head="cosine", cosine_scale=30.0).eval()
    features = network(torch.randn(4, 3, 16, 16)).features
    norms = features.view(4, 3, -1).norm(dim=2)
    torch.testing.assert_close(norms, torch.full((4, 3), 48**0.5))
    assert network.classifier.each(features).abs().max() <= 30


@pytest.mark.parametrize(
    "backbone, shared",
    [
        ("cifar_resnet20", ["layer1"]),
        ("resnet18", ["layer1", "layer2"]),
        ("resnet50", ["layer1", "layer2"]),
        ("mobilenetv2_100", ["blocks.0", "blocks.1", "blocks.2"]),
        ("efficientnet_b0", ["blocks.0", "blocks.1", "blocks.2"]),
    ],
)
@pytest.mark.parametrize("anti_alias", [False, True])
def test_the_cut_backbone_computes_what_the_whole_one_does(backbone, shared, anti_alias):
    network = ride(backbone, anti_alias=anti_alias, settings={"experts": 2}, **COPIES).eval()
    assert network.mix_points() == [network.backbone.get_submodule(name) for name in shared]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        both, whole = network(images).features, network.backbone(images)
    torch.testing.assert_close(both, torch.cat([whole, whole], 1))


def test_experts_of_cifar_resnets_are_narrower_when_they_start_from_scratch():
    network = ride("cifar_resnet32")
    assert [network.backbone.layer2[-1].conv2.out_channels, network.backbone.num_features] == [
        24,
        48,
    ]
    assert network(torch.randn(2, 3, 16, 16)).features.shape == (2, 3 * 48)
    stage = network.branches[0][0][0].conv1.weight
    assert stage.shape == (24, 16, 3, 3)
    assert not torch.equal(stage, network.branches[1][0][0].conv1.weight)
    assert not torch.equal(stage, network.backbone.layer2[0].conv1.weight)
    assert ride(settings={"width": 1.0}).backbone.num_features == 64
    assert ride(**COPIES).backbone.num_features == 64
    assert ride(settings={"width": 0.51}, anti_alias=True)(torch.randn(2, 3, 16, 16))


def test_an_expert_trains_the_trunk_and_itself_alone():
    network = ride()
    logits = network.classifier.each(network(random_batch()[0]).features)
    logits[1].sum().backward()
    first, second = network.branches
    assert network.backbone.conv1.weight.grad.any()
    assert all(p.grad is not None for p in first.parameters())
    own = [*network.backbone.layer2.parameters(), *second.parameters()]
    assert all(p.grad is None or not p.grad.any() for p in own)


def test_experts_that_begin_as_copies_part_because_of_their_heads():
    network = ride(**COPIES)
    images, labels = random_batch()
    mine, other = (branch[0][0].conv1.weight for branch in network.branches)
    assert torch.equal(mine, other)
    terms, _ = network.loss(Batch(images, labels), F.cross_entropy, FIRST)
    sum(terms.values()).backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert (mine - other).abs().max() > 1e-4
    assert all(p.grad is not None for p in network.parameters())  # several processes need it


def test_mixed_labels_share_the_criterion_and_leave_the_divergence():
    network = ride().eval()
    images, labels = random_batch()
    partner = labels.flip(0)
    plain = Batch(images, labels)
    mixed = Batch(images, labels, partner=partner, share=0.7)

    def criterion(logits, labels, share=1.0):
        return share * F.cross_entropy(logits, labels)

    one, output = network.loss(mixed, criterion, FIRST)
    two, _ = network.loss(plain, criterion, FIRST)
    logits = network.classifier.each(output.features)
    expected = sum(
        0.7 * F.cross_entropy(z, labels) + 0.3 * F.cross_entropy(z, partner) for z in logits
    )
    assert one["criterion"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert one["diversity"].item() == pytest.approx(two["diversity"].item())


@pytest.mark.parametrize(
    "model, train, words",
    [
        ({}, {"compile": True}, "its parts one by one"),
        ({}, {"second_sampler": "reversed"}, "second_sampler is used by"),
        ({"experts": 1}, {}, "experts"),
        ({"width": 0.5}, {}, "width"),
        ({"diversity": 0.5, "temperature": 3.0}, {}, "no lower bound"),
        ({}, {"criterion": {"name": "ldam"}}, "model.head=cosine"),
    ],
)
def test_config_refuses_what_makes_no_sense(model, train, words):
    with pytest.raises(UserError, match=words):
        tiny_config({"network": {"name": "ride"} | model}, train)


def test_backbones_that_cannot_be_cut_or_narrowed_are_refused():
    with pytest.raises(UserError, match="VisionTransformer"):
        ride("vit_tiny_patch16_224")
    with pytest.raises(UserError, match="set model.network.width=1"):
        ride("resnet18", settings={"width": 0.75})


def test_warm_start_from_a_plain_network_and_from_one_like_this(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    plain = train_tiny(tiny_config(train={"epochs": 2}), "plain")
    config = tiny_config({"network": "ride", "pretrained": "experiment:plain"}, {"epochs": 2})
    network, _ = build_network(config.model, some_classes(K))
    said = str(load_pretrained(network, config.model, "tiny", "fold0"))
    assert "left new: classifier.* (6); unused: classifier.* (2)" in said
    body = load_network(plain / "weights.safetensors", data)[0].backbone
    for part in (network.backbone, *network.branches):
        stage = part.layer3 if part is network.backbone else part[1]
        for key, tensor in body.layer3.state_dict().items():
            torch.testing.assert_close(stage.state_dict()[key], tensor)
    first, second, _ = network.classifier.heads
    assert not torch.equal(first.weight, second.weight)

    trained = train_tiny(config, "ride")
    config = tiny_config({"network": "ride", "pretrained": "experiment:ride"})
    network, _ = build_network(config.model, some_classes(K))
    assert "new" not in str(load_pretrained(network, config.model, "tiny", "fold0"))
    own = load_network(trained / "weights.safetensors", data)[0].state_dict()
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(own[key], tensor)

    narrow = {"network": {"name": "ride", "width": 0.75}, "pretrained": "experiment:plain"}
    config = tiny_config(narrow)
    with pytest.raises(UserError, match="set model.network.width=1"):
        load_pretrained(
            build_network(config.model, some_classes(K))[0], config.model, "tiny", "fold0"
        )


@pytest.mark.parametrize(
    "model, train",
    [
        (
            {"head": "cosine", "cosine_scale": 30.0, "dropout": 0.1},
            {
                "criterion": {"name": "ldam"},
                "deferred": {"weights": True, "start": 0.5},
                "ema": 0.9,
                "micro_batch": 4,
                "auxiliaries": [{"name": "frequency"}],
            },
        ),
        (
            {"anti_alias": True},
            {
                "criterion": {"name": "focal"},
                "mixing": {"manifold": 1.0, "cutmix": 1.0},
                "second_sampler": "class_balanced",
                "precision": "bf16",
            },
        ),
    ],
    ids=["ldam_drw", "mixing_bf16"],
)
def test_a_killed_run_writes_the_same_bytes_and_heads_that_explain_its_logits(
    model, train, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    whole = resumes_exactly(tiny_config({"network": "ride"} | model, train), monkeypatch)
    header = (whole / "metrics.csv").read_text().splitlines()[0]
    assert "loss_criterion" in header and "loss_diversity" in header
    oof = np.load(whole / "oof.npz")
    kind, arrays = load_head(whole / "head.safetensors")
    tolerance = 0.05 if train.get("precision") else 1e-4
    found = head_logits(oof["features"], arrays, kind)
    np.testing.assert_allclose(found, oof["logits"], rtol=tolerance, atol=tolerance)
