"""Gate and experts: routing by hand, who learns from which images, resume."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from src.config.model import Model
from src.data.dataset import Batch
from src.errors import UserError
from src.networks.base import Progress
from src.networks.build import build_network
from src.networks.task_separator import route
from src.networks.weights import load_network, load_pretrained
from tests.fabricate import some_classes
from tests.training_kit import random_batch, resumes_exactly, tiny_config, tiny_dataset, train_tiny

K = 6
BINS = np.array([0, 0, 1, 1, 2, 2])
FIRST = Progress(0, 0, 0.0, 4)


def separator(routing="hard", bins=BINS):
    torch.manual_seed(0)
    model = Model(
        backbone="cifar_resnet20",
        network={"name": "task_separator", "routing": routing},
        pretrained=False,
    )
    network = build_network(model, some_classes(K, bins))[0]
    with torch.no_grad():
        for expert in network.experts:
            expert.classifier.weight.normal_()
    return network


def test_hard_routing_by_hand():
    gate = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    experts = torch.arange(2 * 3 * 4.0).view(2, 3, 4)
    found = route(gate, experts, "hard")
    assert found.tolist() == [[4.0, 5.0, 6.0, 7.0], [12.0, 13.0, 14.0, 15.0]]


def test_soft_routing_is_the_log_of_the_mean_of_probabilities():
    gate = torch.log(torch.tensor([[0.75, 0.25]]))
    experts = torch.log(torch.tensor([[[0.5, 0.5, 1e-9], [0.1, 0.1, 0.8]]]))
    found = route(gate, experts, "soft").exp()
    torch.testing.assert_close(found, torch.tensor([[0.4, 0.4, 0.2]]), atol=1e-6, rtol=1e-5)
    sure = torch.tensor([[100.0, -100.0]])
    torch.testing.assert_close(
        route(sure, experts, "soft").softmax(1), route(sure, experts, "hard").softmax(1)
    )


def test_the_gradient_of_soft_routing():
    torch.manual_seed(0)
    gate = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    experts = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g, e: route(g, e, "soft"), (gate, experts))


@pytest.mark.parametrize("routing", ["hard", "soft"])
def test_shapes_and_what_stage_2_gets(routing):
    network = separator(routing).eval()
    images, _ = random_batch()
    output = network(images)
    assert output.logits.shape == (8, K) and torch.isfinite(output.logits).all()
    torch.testing.assert_close(output.features, network.backbone(images))
    widths = [m.weight.shape for m in network.gate if hasattr(m, "in_features")]
    assert widths == [(512, K), (256, 512), (128, 256), (3, 128)]


def test_hard_routing_follows_the_gate():
    network = separator().eval()
    images, _ = random_batch()
    with torch.no_grad():
        network.gate[-1].weight.zero_()
        network.gate[-1].bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
        torch.testing.assert_close(network(images).logits, network.experts[2](images).logits)


def gradient(module):
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def test_each_part_learns_from_its_own_loss_and_images():
    network = separator()
    images, _ = random_batch()
    batch = Batch(images, torch.tensor([0, 1, 0, 1, 4, 5, 4, 2]))  # a single image of bin 1
    terms, baseline = network.loss(batch, F.cross_entropy, FIRST)
    terms["gate"].backward(retain_graph=True)
    assert gradient(network.gate) > 0
    assert gradient(network.backbone) == gradient(network.classifier) == 0
    terms["experts"].backward(retain_graph=True)
    found = [gradient(expert) for expert in network.experts]
    assert found[0] > 0 and found[1] == 0 and found[2] > 0
    assert gradient(network.backbone) == 0
    terms["criterion"].backward()
    assert gradient(network.backbone) > 0
    assert baseline.logits.shape == (8, K)


def test_the_loss_of_the_experts_by_hand():
    network = separator()
    images, _ = random_batch()
    labels = torch.tensor([0, 1, 0, 1, 4, 5, 4, 5])
    terms, _ = network.loss(Batch(images, labels), F.cross_entropy, FIRST)
    again = separator()
    parts = [
        F.cross_entropy(again.experts[b](images[rows]).logits, labels[rows]).item()
        for b, rows in ((0, slice(0, 4)), (2, slice(4, 8)))
    ]
    assert terms["experts"].item() == pytest.approx(sum(parts) / 3, rel=1e-5)


def test_the_loss_of_the_gate_by_hand():
    """−log of what a gate gives to the bin of each image: 1/8, 2/8, 3/8 and 4/8 of labels in the
    bins 0, 0, 1 and 2."""
    shares = torch.tensor([[1.0, 5, 2], [2, 3, 3], [4, 3, 1], [3, 1, 4]]) / 8
    network, seen = separator(), []
    network.gate.register_forward_hook(
        lambda module, inputs, _: seen.append(inputs) or shares.log()
    )
    images, _ = random_batch(4)
    batch = Batch(images, torch.tensor([0, 1, 3, 4]))
    terms, baseline = network.loss(batch, F.cross_entropy, FIRST)
    want = -np.log([1 / 8, 2 / 8, 3 / 8, 4 / 8]).mean()
    assert terms["gate"].item() == pytest.approx(want, rel=1e-6)
    torch.testing.assert_close(seen[0][0], baseline.logits.detach())


@pytest.mark.parametrize("term", ["criterion", "experts", "gate"])
def test_the_gradient_of_every_term(term, double):
    network = separator().double().eval()
    images, labels = random_batch()
    heads = {
        "criterion": network.classifier,
        "experts": network.experts[2].classifier,
        "gate": network.gate[-1],
    }

    def loss(_):
        return network.loss(Batch(images.double(), labels), F.cross_entropy, FIRST)[0][term]

    weight = heads[term].weight
    assert torch.autograd.gradcheck(loss, weight, fast_mode=True)
    assert torch.autograd.grad(loss(weight), weight)[0].any()


def test_experts_learn_from_the_second_stream_where_there_is_one():
    network = separator()
    images, _ = random_batch()
    few = Batch(images, torch.full((8,), 5))
    many = Batch(images, torch.zeros(8, dtype=torch.long), other=few)
    terms, _ = network.loss(many, F.cross_entropy, FIRST)
    terms["experts"].backward()
    assert [gradient(expert) > 0 for expert in network.experts] == [False, False, True]


def test_two_bins_have_two_experts_and_one_bin_is_refused():
    assert len(separator(bins=np.array([0, 0, 0, 1, 1, 1])).experts) == 2
    with pytest.raises(UserError, match="two bins or more"):
        separator(bins=np.zeros(K, dtype=np.int64))
    with pytest.raises(UserError, match="see some of them"):
        tiny_config({"network": "task_separator"}, {"criterion": {"name": "lade"}})
    with pytest.raises(UserError, match="images that belong to one bin"):
        tiny_config({"network": "task_separator"}, {"mixing": {"mixup": 0.2}})


def test_training_warm_start_and_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    plain = train_tiny(tiny_config(train={"epochs": 2}), "plain")
    model = {"network": "task_separator", "pretrained": "experiment:plain"}
    config = tiny_config(model, {"second_sampler": "class_balanced", "ema": 0.9})
    network, _ = build_network(config.model, some_classes(K, BINS))
    load_pretrained(network, config.model, "tiny", "fold0")
    expected, _ = load_network(plain / "weights.safetensors", data)
    for part in (network, *network.experts):
        torch.testing.assert_close(part.backbone.conv1.weight, expected.backbone.conv1.weight)
        torch.testing.assert_close(part.classifier.weight, expected.classifier.weight)

    directory = resumes_exactly(config, monkeypatch)
    network, _ = load_network(directory / "weights.safetensors", data)
    assert network.bins.tolist() == BINS.tolist()
    header = (directory / "metrics.csv").read_text().splitlines()[0]
    assert all(f"loss_{term}" in header for term in ("criterion", "experts", "gate"))
