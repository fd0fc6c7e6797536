"""The frequency auxiliary, and knowledge transfer from class means."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from src import logits as arrays
from src.auxiliaries import build_auxiliaries
from src.config.auxiliaries import Frequency
from src.config.model import Model
from src.config.networks import KT
from src.data.dataset import Batch
from src.errors import UserError
from src.metrics import bin_numbers
from src.networks.base import Output, Progress
from src.networks.build import build_network
from src.networks.kt import remember, to_range, transfer
from src.networks.weights import load_network
from src.training.loop import Objective
from tests.fabricate import some_classes
from tests.training_kit import random_batch, resumes_exactly, tiny_config, tiny_dataset, train_tiny

K = 6
BINS = np.array([0, 0, 1, 1, 2, 2])
FIRST, SECOND = Progress(0, 0, 0.0, 4), Progress(1, 9, 0.25, 4)


class PlainCE(nn.Module):
    def set_progress(self, progress):
        pass

    def forward(self, logits, labels, share=1.0):
        return (share * F.cross_entropy(logits, labels, reduction="none")).mean()


def test_bins_are_numbered_from_the_most_frequent_one_that_is_there():
    assert bin_numbers(np.array(["few", "many", "medium", "few"])).tolist() == [2, 0, 1, 2]
    assert bin_numbers(np.array(["few", "medium"])).tolist() == [1, 0]
    assert bin_numbers(np.array(["tail", "head"])).tolist() == [1, 0]


# ---- frequency ---------------------------------------------------------------------------------


def built(section, classes):
    return build_auxiliaries((section,), SimpleNamespace(width=2), classes)[section.name]


def frequency(weight=1.0):
    loss = built(Frequency(weight=weight), some_classes(K, BINS))
    with torch.no_grad():
        loss.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    return loss


def test_frequency_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    batch = Batch(torch.zeros(2, 3, 1, 1), torch.tensor([1, 4]))  # bins 0 and 2
    e = np.e
    expected = (-np.log(e / (e + 2)) - np.log(1 / (1 + e**2 + 1))) / 2
    found = frequency(weight=3.0)(Output(None, features), batch, FIRST)
    assert found.item() == pytest.approx(3 * expected, rel=1e-5)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_gradient_of_frequency(mixed, double):
    loss, labels = frequency(weight=3.0).double(), torch.tensor([1, 4, 2])
    partner = torch.tensor([0, 2, 5]) if mixed else None
    batch = Batch(torch.zeros(3, 3, 1, 1), labels, partner, 0.3 if mixed else 1.0)
    features = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    found = loss(Output(None, features), batch, FIRST)
    assert found.dtype == torch.float64 and torch.autograd.gradcheck(
        lambda f, w: loss(Output(None, f), batch, FIRST), (features, loss.head.weight)
    )


def test_frequency_of_mixed_images_is_mixed():
    features, loss = torch.randn(2, 2), frequency()
    images, labels, partner = torch.zeros(2, 3, 1, 1), torch.tensor([1, 4]), torch.tensor([4, 3])
    output = Output(None, features)
    one = loss(output, Batch(images, labels), FIRST)
    two = loss(output, Batch(images, partner), FIRST)
    found = loss(output, Batch(images, labels, partner, 0.3), FIRST)
    assert found.item() == pytest.approx((0.3 * one + 0.7 * two).item(), rel=1e-5)
    shares = loss(output, Batch(images, labels, partner, torch.tensor([0.3, 0.3])), FIRST)
    assert shares.item() == pytest.approx(found.item(), rel=1e-5)


def test_the_objective_runs_the_network_once_and_trains_all_its_parts():
    network, _ = build_network(Model(backbone="cifar_resnet20", pretrained=False), some_classes(K))
    auxiliaries = build_auxiliaries((Frequency(),), network, classes=some_classes(K, BINS))
    objective, calls = Objective(network, PlainCE(), auxiliaries), []
    network.register_forward_hook(lambda *_: calls.append(1))
    terms = objective(Batch(*random_batch()), FIRST)
    terms["frequency"].backward()
    assert set(terms) == {"criterion", "frequency"} and len(calls) == 1
    assert auxiliaries["frequency"].head.weight.grad.any()
    assert network.backbone.conv1.weight.grad.any()


def test_one_bin_is_refused():
    with pytest.raises(UserError, match="frequency needs classes in two bins or more, found 1"):
        built(Frequency(), some_classes(K))


def test_an_auxiliary_is_there_once():
    twice = [{"name": "frequency"}, {"name": "frequency", "weight": 2}]
    with pytest.raises(UserError, match="each can be there once"):
        tiny_config(train={"auxiliaries": twice})


def test_frequency_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    auxiliaries = [{"name": "frequency"}]
    config = tiny_config(train={"auxiliaries": auxiliaries, "mixing": {"mixup": 0.4}, "ema": 0.9})
    directory = resumes_exactly(config, monkeypatch)
    table = (directory / "metrics.csv").read_text().splitlines()[0]
    assert "loss_criterion" in table and "loss_frequency" in table


# ---- knowledge transfer ------------------------------------------------------------------------


def test_memory_starts_at_the_mean_and_then_moves_by_the_formula():
    memory, met = torch.zeros(3, 2), torch.zeros(3)
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    remember(memory, met, directions, torch.tensor([0, 0, 2]), momentum=0.1)
    torch.testing.assert_close(memory, torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.0, 1.0]]))
    remember(memory, met, torch.tensor([[1.0, 0.0]]), torch.tensor([0]), momentum=0.1)
    torch.testing.assert_close(memory[0], torch.tensor([0.55, 0.45]))  # + 0.1 ((1, 0) - (.5, .5))
    torch.testing.assert_close(memory[2], torch.tensor([0.0, 1.0]))
    assert met.tolist() == [3, 0, 1]


def test_without_momentum_the_memory_is_the_mean_of_all_images():
    memory, met = torch.zeros(2, 2), torch.zeros(2)
    for rows, labels in ((_four_rows()[0][:3], [0, 0, 1]), (_four_rows()[0][3:], [0])):
        remember(memory, met, rows, torch.tensor(labels), momentum=None)
    rows = _four_rows()[0]
    torch.testing.assert_close(memory, torch.stack([rows[[0, 1, 3]].mean(0), rows[2]]))


def test_teaching_begins_with_the_means_of_the_epoch_before():
    """Not with what an untrained network saw in the first batches."""
    network = kt(start_epoch=2).eval()
    old, new = Batch(*random_batch(seed=1)), Batch(*random_batch(seed=2))
    network.loss(old, PlainCE(), Progress(0, 0, 0.0, 4))
    for step in (1, 2):
        network.loss(new, PlainCE(), Progress(1, step, 0.25, 4))
    f = F.normalize(network(new.images).features, dim=1).detach()
    means = torch.stack([f[new.labels == c].mean(0) for c in range(K)])
    torch.testing.assert_close(network.memory, means)
    network.loss(old, PlainCE(), Progress(2, 3, 0.5, 4))
    f = F.normalize(network(old.images).features, dim=1).detach()
    moved = torch.stack([f[old.labels == c].mean(0) for c in range(K)])
    torch.testing.assert_close(network.memory, means + 0.1 * (moved - means))


def _process(rank, directory):
    torch.distributed.init_process_group("gloo", f"file://{directory}/meet", None, 2, rank)
    directions, labels = _four_rows()
    memory = torch.zeros(3, 2)
    mine = slice(2 * rank, 2 * rank + 2)
    remember(memory, torch.zeros(3), directions[mine], labels[mine], momentum=0.1)
    torch.save(memory, f"{directory}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _four_rows():
    return F.normalize(torch.arange(8.0).view(4, 2) + 1, dim=1), torch.tensor([0, 1, 0, 0])


@pytest.mark.slow
def test_memory_of_two_processes_is_that_of_one(tmp_path):
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    memory = torch.zeros(3, 2)
    remember(memory, torch.zeros(3), *_four_rows(), momentum=0.1)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), memory)


def test_to_range_is_the_one_for_arrays():
    z, like = torch.randn(5, 7), 10 * torch.randn(5, 7)
    z[0] = 0.5  # a flat row must not divide by zero
    expected = arrays.to_range(z.numpy(), like.numpy())
    np.testing.assert_allclose(to_range(z, like).numpy(), expected, rtol=1e-4, atol=1e-5)


def hand_transfer(logits, teacher, labels, phi, t, average="parts"):
    """Row by row in numpy."""

    def log_softmax(z):
        return z - np.log(np.exp(z).sum())

    right, wrong = [], []
    for z, d, y in zip(logits.numpy(), teacher.numpy(), labels.tolist(), strict=True):
        ce = -log_softmax(z)[y]
        p = np.exp(log_softmax(d / t))
        kl = (p * (np.log(p) - log_softmax(z / t))).sum()
        (right if d.argmax() == y else wrong).append((ce, kl))
    right, wrong = [phi * ce + (1 - phi) * kl for ce, kl in right], [ce for ce, _ in wrong]
    if average == "images":
        return np.mean(right + wrong)
    return sum(np.mean(part) for part in (right, wrong) if part)


@pytest.mark.parametrize("average", ["parts", "images"])
@pytest.mark.parametrize("labels", [[0, 1, 2, 0], [0, 1, 2, 2], [1, 0, 0, 1]])
@pytest.mark.parametrize("phi, temperature", [(0.2, 1.0), (0.5, 2.0)])
def test_transfer_by_hand_with_full_mixed_and_empty_masks(labels, phi, temperature, average):
    torch.manual_seed(0)
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[3.0, 1, 0], [0, 2, 1], [0, 0, 1], [1, 0, 0.5]], dtype=torch.float64)
    labels = torch.tensor(labels)
    settings = KT(phi=phi, temperature=temperature, average=average)
    loss = transfer(logits, teacher, labels, PlainCE(), settings)
    expected = hand_transfer(logits.detach(), teacher, labels, phi, temperature, average)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()
    torch.autograd.gradcheck(lambda z: transfer(z, teacher, labels, PlainCE(), settings), logits)


def test_transfer_with_phi_one_is_the_sum_of_the_two_parts_of_the_criterion():
    logits, teacher = torch.randn(4, 3), torch.randn(4, 3)
    settings, labels = KT(phi=1.0), teacher.argmax(1)
    found = transfer(logits, teacher, labels, PlainCE(), settings)
    assert found.item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)


def test_with_every_image_alike_and_phi_one_it_is_the_criterion_of_the_batch():
    logits, teacher, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    found = transfer(logits, teacher, labels, PlainCE(), KT(phi=1.0, average="images"))
    assert found.item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def kt(**keys):
    torch.manual_seed(0)
    model = Model(backbone="cifar_resnet20", network=KT(**keys), pretrained=False)
    return build_network(model, some_classes(K))[0]


def test_only_the_first_head_trains_the_backbone():
    network, batch = kt(), Batch(*random_batch())
    with torch.no_grad():
        network.classifier.weight.normal_()
    for progress in (FIRST, SECOND):
        network.zero_grad()
        terms, output = network.loss(batch, PlainCE(), progress)
        terms["second"].backward(retain_graph=True)
        assert network.backbone.conv1.weight.grad is None
        assert network.classifier.weight.grad.any() and network.first.weight.grad is None
        terms["criterion"].backward()
        assert network.backbone.conv1.weight.grad.any()
    torch.testing.assert_close(network.classifier(output.features), output.logits)


def test_class_means_teach_from_start_epoch_on():
    batch = Batch(*random_batch())
    early, _ = kt().loss(batch, PlainCE(), FIRST)
    expected = F.cross_entropy(kt()(batch.images).logits, batch.labels)
    assert early["second"].item() == pytest.approx(expected.item(), rel=1e-5)
    network = kt(start_epoch=0)
    with torch.no_grad():  # a teacher that is always right
        f = F.normalize(network(batch.images).features, dim=1)
        first = {int(y): f[i] for i, y in reversed(list(enumerate(batch.labels)))}
        network.memory.copy_(torch.stack([first[c] for c in range(K)]))
        network.met.fill_(1)
    late, _ = network.loss(batch, PlainCE(), FIRST)
    assert torch.isfinite(late["second"]) and late["second"].item() != early["second"].item()


@pytest.mark.parametrize("phi, temperature", [(0.2, 1.0), (0.5, 2.0)])
def test_the_second_term_by_hand_with_a_memory_that_is_there(phi, temperature):
    """The teacher is the cosine to the memory from before this batch, on the range of head 1."""
    network = kt(phi=phi, temperature=temperature, momentum=1.0).eval()
    images, _ = random_batch()
    with torch.no_grad():
        network.classifier.weight.normal_(std=0.05)
        network.first.weight.normal_(std=0.1)
        f = network(images).features
        own = F.normalize(f, dim=1)[:K] + 0.1 * torch.randn(K, f.shape[1])
        network.met.fill_(1)
        network.memory.copy_(own * torch.tensor([9.0, 1, 5, 0.2, 3, 1])[:, None])
        first, second = network.first(f).numpy(), network.classifier(f)
        memory = network.memory.clone().numpy()
    norms = np.linalg.norm(f, axis=1)[:, None] * np.linalg.norm(memory, axis=1)
    teacher = arrays.to_range(f.numpy() @ memory.T / norms, first)
    labels = torch.tensor(teacher.argmax(1))
    labels[::3] = (labels[::3] + 1) % K  # where the teacher is wrong
    terms, _ = network.loss(Batch(images, labels), PlainCE(), SECOND)
    want = hand_transfer(second, torch.tensor(teacher), labels, phi, temperature)
    assert terms["second"].item() == pytest.approx(want, rel=1e-4)
    assert terms["criterion"].item() == pytest.approx(
        F.cross_entropy(torch.tensor(first), labels).item(), rel=1e-5
    )


def test_kt_refuses_mixing():
    with pytest.raises(UserError, match="images of one class"):
        tiny_config({"network": "kt"}, {"mixing": {"cutmix": 1.0}})


def test_kt_refuses_a_regulariser_over_the_whole_batch():
    with pytest.raises(UserError, match="all images of a batch"):
        tiny_config({"network": "kt"}, {"criterion": {"name": "lade"}})


def test_kt_resumes_with_its_memory_and_reads_plain_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    train_tiny(tiny_config(train={"epochs": 2}), "plain")
    model = {"network": "kt", "pretrained": "experiment:plain"}
    directory = resumes_exactly(tiny_config(model, {"ema": 0.9}), monkeypatch)
    network, _ = load_network(directory / "weights.safetensors", data)
    assert (network.memory.norm(dim=1) > 0).all()

    state = build_network(tiny_config().model, some_classes(K))[0].state_dict()
    adopted = kt().adopt(state)
    torch.testing.assert_close(adopted["first.weight"], state["classifier.weight"])
    torch.testing.assert_close(adopted["classifier.weight"], state["classifier.weight"])
