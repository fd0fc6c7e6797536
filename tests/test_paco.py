"""GPaCo: its loss by hand and in its limits, the queue, two views of one image, resume."""

from math import exp, log
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from src.artifacts.heads import load_head
from src.artifacts.predictions import load_predictions
from src.config.augment import Augment
from src.config.data import Data
from src.config.losses import BalancedSoftmax
from src.config.model import Model
from src.config.networks import PaCo, Plain
from src.data.augment import TrainTransform
from src.data.dataset import Batch
from src.data.loader import training_loader
from src.data.transforms import Preprocessing
from src.errors import UserError
from src.logits import head_logits
from src.losses.balanced_softmax import BalancedSoftmaxLoss
from src.networks.base import Progress
from src.networks.build import build_network
from src.networks.paco import EMPTY, contrast, level
from src.networks.paco import PaCo as GPaCo
from src.networks.weights import load_network, load_pretrained
from src.training.job import build_epochs
from tests.fabricate import some_classes
from tests.training_kit import (
    COUNTS,
    SIZE,
    random_batch,
    resumes_exactly,
    tiny_config,
    tiny_dataset,
    train_tiny,
)

K = 6
FIRST = Progress(0, 0, 0.0, 4)
CRITERION = BalancedSoftmaxLoss(BalancedSoftmax(), some_classes(len(COUNTS), counts=COUNTS))
TRAIN = {"second_sampler": "same", "criterion": {"name": "balanced_softmax"}}


def paco(head="linear", **keys):
    torch.manual_seed(0)
    model = Model(backbone="cifar_resnet20", network=PaCo(**keys), pretrained=False, head=head)
    network = build_network(model, some_classes(K))[0]
    with torch.no_grad():
        network.classifier.weight.normal_(std=0.3)
    return network


def two_views(count=8):
    images, labels = random_batch(count, seed=1)
    again, _ = random_batch(count, seed=2)
    return Batch(images, labels, other=Batch(again, labels))


def arrays(views=6, queue=5, width=4, dtype=torch.float32):
    """classes, views, labels, queue and its labels; classes 0 … 2, and one empty place."""
    torch.manual_seed(3)
    unit = F.normalize(torch.randn(views + queue, width, dtype=dtype), dim=1)
    labels = torch.arange(views + queue) % 3
    kept = labels[views:].clone()
    kept[-1:] = EMPTY
    return torch.randn(views, 3, dtype=dtype), unit[:views], labels[:views], unit[views:], kept


# ---- the loss ----------------------------------------------------------------------------------


def test_loss_by_hand():
    """Two views at a right angle, of classes 0 and 1; the queue holds one of class 0 at 60 degrees
    to both halves of the plane, one of class 1 like the second view, and an empty place."""
    classes = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    views = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    queue = torch.tensor([[0.5, 0.75**0.5], [0.0, 1.0], [1.0, 0.0]])
    found = contrast(
        classes,
        views,
        torch.tensor([0, 1]),
        queue,
        torch.tensor([0, 1, EMPTY]),
        PaCo(alpha=0.3, beta=2.0, temperature=0.5),
    )
    root = 0.75**0.5
    # against class 0, class 1, the other view, the queue's first, the queue's second
    first = log(exp(1) + exp(-1) + exp(0) + exp(1) + exp(0))
    first -= (2 * 1 + 0.3 * 1) / 2.3
    second = log(exp(0.5) + exp(2) + exp(0) + exp(2 * root) + exp(2))
    second -= (2 * 2 + 0.3 * 2) / 2.3
    assert found.item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_loss_is_the_weighted_log_softmax_of_the_docstring():
    classes, views, labels, queue, kept = arrays()
    settings = PaCo(alpha=0.7, beta=1.3, temperature=0.4)
    losses = []
    for i in range(len(views)):
        others = [(views[j], labels[j]) for j in range(len(views)) if j != i]
        others += [(v, y) for v, y in zip(queue, kept, strict=True) if y != EMPTY]
        s = torch.cat([classes[i], torch.stack([views[i] @ v / 0.4 for v, _ in others])])
        w = [1.3 * (c == labels[i]) for c in range(3)] + [0.7 * (y == labels[i]) for _, y in others]
        w = torch.tensor([float(value) for value in w])
        losses.append(-(w / w.sum() * s.log_softmax(0)).sum())
    found = contrast(classes, views, labels, queue, kept, settings)
    torch.testing.assert_close(found, torch.stack(losses).mean())


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_without_samples_it_is_balanced_softmax(alpha):
    """A view alone, as the queue is empty; log π and log N_c differ by a constant."""
    logits, labels = torch.randn(7, K), torch.arange(7) % K
    classes = logits + F.log_softmax(CRITERION.prior, 0)
    nothing, empty = torch.zeros(3, 4), torch.full((3,), EMPTY)
    losses = [
        contrast(
            classes[i : i + 1], torch.ones(1, 4), labels[i : i + 1], nothing, empty,
            PaCo(alpha=alpha),
        )
        for i in range(7)
    ]  # fmt: skip
    torch.testing.assert_close(torch.stack(losses).mean(), CRITERION(logits, labels))


def test_alpha_zero_is_balanced_softmax_with_the_samples_as_negatives():
    logits, labels = torch.randn(6, K), torch.arange(6)
    _, views, _, queue, _ = arrays(6)
    classes = logits + F.log_softmax(CRITERION.prior, 0)  # log π_c
    pi = torch.tensor(COUNTS) / sum(COUNTS)
    torch.testing.assert_close(classes, logits + pi.log())
    found = contrast(classes, views, labels, queue, labels[:5], PaCo(alpha=0.0, temperature=0.5))
    similar = (views @ torch.cat([views, queue]).T / 0.5).exp()
    samples = similar.sum(1) - similar.diagonal()  # all but itself
    extra = torch.log1p(samples / classes.exp().sum(1)).mean()
    torch.testing.assert_close(found, CRITERION(logits, labels) + extra)
    apart = -torch.ones(1, 1), torch.ones(1, 1)  # a sample on the other side has no say
    alone = contrast(classes[:1], apart[0], labels[:1], apart[1], labels[:1], PaCo(alpha=0.0))
    torch.testing.assert_close(alone, CRITERION(logits[:1], labels[:1]))


def test_the_order_of_the_queue_and_of_the_batch_does_not_matter():
    classes, views, labels, queue, kept = arrays(dtype=torch.float64)
    settings = PaCo(alpha=0.5)
    found = contrast(classes, views, labels, queue, kept, settings)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        contrast(classes, views, labels, queue[order], kept[order], settings), found
    )
    turned = contrast(classes.flip(0), views.flip(0), labels.flip(0), queue, kept, settings)
    torch.testing.assert_close(turned, found)


def test_what_an_empty_place_holds_does_not_matter():
    classes, views, labels, queue, kept = arrays()
    found = contrast(classes, views, labels, queue, kept, PaCo())
    queue[-1] = views[0]
    assert contrast(classes, views, labels, queue, kept, PaCo()) == found
    assert contrast(classes, views, labels, queue[:-1], kept[:-1], PaCo()) == found


def test_gradients_in_double_precision():
    classes, raw, labels, queue, kept = arrays(dtype=torch.float64)

    def loss(classes, raw):
        return contrast(classes, F.normalize(raw, dim=1), labels, queue, kept, PaCo(alpha=0.3))

    inputs = classes.requires_grad_(), (2 * raw).requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


def test_samples_of_the_class_attract_and_others_repel():
    _, views, labels, queue, kept = arrays()
    classes = torch.zeros(6, 3)
    near = queue.clone()
    near[0] = views[0]  # queue[0] has class 0, as the first view has
    settings = PaCo(alpha=1.0)
    own = contrast(classes[:1], views[:1], labels[:1], near[:1], kept[:1], settings)
    far = contrast(classes[:1], views[:1], labels[:1], -near[:1], kept[:1], settings)
    assert own < far
    other = labels[1:2]
    assert contrast(classes[:1], views[:1], other, near[:1], kept[:1], settings) > contrast(
        classes[:1], views[:1], other, -near[:1], kept[:1], settings
    )


# ---- the network -------------------------------------------------------------------------------


def test_the_queue_holds_the_newest_second_views_and_wraps():
    network = paco(queue=5, width=2)
    for step in range(3):  # 3 + 3 + 3 views into 5 places
        views = torch.full((3, 2), float(step))
        network.remember(views, torch.tensor([step, step + 1, step + 2]))
        if step == 0:
            assert network.queue_labels.tolist() == [0, 1, 2, EMPTY, EMPTY]
    assert network.queue[:, 0].tolist() == [2, 2, 2, 1, 1]
    assert network.queue_labels.tolist() == [2, 3, 4, 1, 2]
    network.remember(torch.arange(14.0).view(7, 2), torch.arange(7))  # a batch beyond its size
    assert network.queue_labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("queue", [0, 12])
def test_loss_of_a_batch_and_what_it_leaves_behind(head, queue):
    network, batch = paco(head, queue=queue, alpha=0.2), two_views()
    terms, output = network.loss(batch, CRITERION, FIRST)
    again = paco(head, queue=queue, alpha=0.2)
    whole = again(torch.cat([batch.images, batch.other.images]))
    views = F.normalize(again.projection(whole.features), dim=1)
    pi = torch.tensor(COUNTS) / sum(COUNTS)
    labels = batch.labels.repeat(2)
    expected = contrast(
        whole.logits + pi.log(), views, labels, again.queue, again.queue_labels, again.settings
    )
    torch.testing.assert_close(terms["contrast"], expected)
    torch.testing.assert_close(output.logits, whole.logits[:8])  # of batch.images alone
    torch.testing.assert_close(output.features, whole.features[:8])
    if queue:
        torch.testing.assert_close(network.queue[:8], views[8:])
        assert network.queue_labels.tolist() == [*batch.labels.tolist(), *[EMPTY] * 4]
    terms["contrast"].backward()
    assert all(p.grad.abs().sum() > 0 for p in network.projection.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert not network.queue.requires_grad


def test_the_next_batch_meets_the_queue():
    network, batch = paco(queue=8), two_views()
    first, _ = network.loss(batch, CRITERION, FIRST)
    network.queue_labels.fill_(EMPTY)
    alone, _ = network.loss(batch, CRITERION, FIRST)
    torch.testing.assert_close(first["contrast"], alone["contrast"])
    second, _ = network.loss(batch, CRITERION, FIRST)
    assert second["contrast"] > alone["contrast"]  # there is more to tell apart


def test_micro_batches_fill_the_queue_as_the_whole_batch_would():
    network, batch = paco(queue=8), two_views()
    for part in batch.split(2):
        assert torch.equal(part.labels, part.other.labels)
        network.loss(part, CRITERION, FIRST)[0]["contrast"].backward()
    labels = batch.labels.tolist()
    assert network.queue_labels.tolist() == labels[4:] + labels[:4]


def test_prediction_is_the_classifier_alone():
    network = paco().eval()
    images, _ = random_batch()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        output = network(images)
    torch.testing.assert_close(output.logits, network.classifier(output.features))
    torch.testing.assert_close(output.features, network.backbone(images))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


# ---- classes against samples -------------------------------------------------------------------


def fine_tuned(pretrained, steps=40, **keys):
    """(accuracy, mean cosine of projections of two classes) on new views of ten classes, 40 … 2
    images, after steps of AdamW on features as of a pretrained network: positive, with a large
    common part, and the classes apart."""
    counts = np.array([40, 20, 10, 6, 4, 3, 3, 2, 2, 2])
    rng = torch.Generator().manual_seed(0)
    common = torch.rand(128, generator=rng)
    means = common + 0.7 * torch.randn(10, 128, generator=rng)
    body = torch.nn.Flatten()
    body.num_features = 128

    def view(labels):
        noise = 0.5 * torch.randn(len(labels), 128, generator=rng)
        return (means[labels] + noise).relu()[:, :, None, None]

    torch.manual_seed(0)
    model = Model(network=PaCo(**keys), pretrained=pretrained)
    classes = some_classes(10, counts=counts)
    network = GPaCo(model, body, classes)
    criterion = BalancedSoftmaxLoss(BalancedSoftmax(), classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    images = torch.arange(10).repeat_interleave(torch.from_numpy(counts))
    for _ in range(steps):
        labels = images[torch.randint(len(images), (32,), generator=rng)]
        batch = Batch(view(labels), labels, other=Batch(view(labels), labels))
        optimizer.zero_grad()
        network.loss(batch, criterion, FIRST)[0]["contrast"].backward()
        optimizer.step()
    labels = torch.arange(10).repeat(20)
    with torch.no_grad():
        output = network(view(labels))
        views = F.normalize(network.projection(output.features), dim=1)
    right = (output.logits.argmax(1) == labels).float().mean()
    return float(right), float((views @ views.T)[labels[:, None] != labels].mean())


def test_classes_are_learned_from_pretrained_features():
    right, cosine = fine_tuned("weights.safetensors")
    assert right > 0.85 and cosine < 0.75


def test_what_goes_wrong_where_classes_and_samples_are_not_level():
    right, _ = fine_tuned(pretrained=False)  # samples have the whole softmax: the published loss
    assert right < 0.3
    _, cosine = fine_tuned("weights.safetensors", offset=40.0)  # classes have: nothing repels
    assert cosine > 0.95


@pytest.mark.parametrize("alpha", [0.01, 0.3])
def test_the_loss_is_balanced_softmax_contrast_and_the_share_of_the_classes(alpha):
    """L_i = β/W · balanced softmax + αP/W · supervised contrast + H, as the module says."""
    torch.manual_seed(4)
    views, labels = F.normalize(torch.randn(8, 4), dim=1), torch.arange(4).repeat(2)
    classes, settings = torch.randn(8, K) + 3, PaCo(alpha=alpha, beta=0.8, temperature=0.5)
    found = contrast(classes, views, labels, views[:0], labels[:0], settings)  # P = 1
    samples = (views @ views.T / 0.5).fill_diagonal_(-torch.inf)
    twin = torch.arange(8).roll(4)
    share = (classes.logsumexp(1) - samples.logsumexp(1)).sigmoid()
    target = 0.8 / (0.8 + alpha)
    expected = (
        target * F.cross_entropy(classes, labels)
        + (1 - target) * F.cross_entropy(samples, twin)
        + F.binary_cross_entropy(share, torch.full_like(share, target))
    )
    torch.testing.assert_close(found, expected)


def test_offset_is_for_pretrained_weights_unless_one_is_set():
    def offset(pretrained, **keys):
        model = Model(backbone="cifar_resnet20", network=PaCo(**keys), pretrained=pretrained)
        return build_network(model, some_classes(K))[0].offset

    assert offset(False) == 0
    assert offset("experiment:plain") == pytest.approx(20 + log(100))
    assert offset("experiment:plain", temperature=0.2, alpha=0.5) == pytest.approx(5 + log(2))
    assert offset("experiment:plain", alpha=0.0) == 20
    assert offset("experiment:plain", offset=0) == 0
    assert offset(False, offset=3) == 3


@pytest.mark.parametrize("positives", [1, 7])
def test_the_offset_leaves_classes_their_share_whatever_the_number_of_positives(positives):
    settings = PaCo(alpha=0.05, beta=0.8, temperature=0.1)
    samples = torch.full((positives,), 1 / 0.1)
    share = (level(settings) - samples.logsumexp(0)).sigmoid()
    assert float(share) == pytest.approx(0.8 / (0.8 + 0.05 * positives), abs=1e-5)


# ---- two views ---------------------------------------------------------------------------------


def streams(table, cache="none", rank=0, world=1, epoch=1):
    train = {**TRAIN, "augment": {"crop": "padded", "color_jitter": 0}}
    config = tiny_config({"network": "paco"}, train)
    job = SimpleNamespace(
        config=config,
        data=SimpleNamespace(num_classes=K),
        accelerator=SimpleNamespace(process_index=rank, num_processes=world),
    )
    epochs = build_epochs(job, table["label"].to_numpy())
    epochs.epoch = epoch
    prep = Preprocessing(SIZE, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    transform = TrainTransform(prep, Augment(**train["augment"]), config.seed)
    data = Data(workers=0, cache=cache)
    loader = training_loader(data, table, transform, epochs, torch.device("cpu"))
    return list(epochs), list(loader)


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny_dataset().images


@pytest.mark.parametrize("cache", ["none", "device"])
def test_two_views_are_of_the_same_images_and_differ(table, cache):
    draws, batches = streams(table, cache)
    for drawn, batch in zip(draws, batches, strict=True):
        rows = [row for _, _, row in drawn]
        assert rows[:8] == rows[8:]
        assert torch.equal(batch.labels, batch.other.labels)
        differ = (batch.images != batch.other.images).flatten(1).any(1)
        assert differ.float().mean() > 0.8  # some are moved alike: 2 pixels and a mirror
    again = streams(table, cache)[1]
    assert all(
        torch.equal(a.other.images, b.other.images) for a, b in zip(batches, again, strict=True)
    )
    later = streams(table, cache, epoch=2)[1]
    assert not torch.equal(batches[0].other.images, later[0].other.images)


def test_two_processes_see_the_views_that_one_sees(table):
    _, alone = streams(table)
    ranks = [streams(table, rank=rank, world=2)[1] for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.other.images, torch.cat([part.other.images for part in parts]))


# ---- config, training --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train, words",
    [
        ({"second_sampler": None}, "set train.second_sampler=same"),
        ({"second_sampler": "reversed"}, "set train.second_sampler=same"),
        ({"criterion": {"name": "cross_entropy"}}, "name: balanced_softmax"),
        ({"criterion": {"name": "logit_adjusted", "smoothing": 0.1}}, "without smoothing"),
        ({"sampler": "class_balanced"}, "Set train.sampler=instance"),
        ({"deferred": {"weights": True}}, "switch it off"),
        ({"deferred": {"sampling": True}}, "switch it off"),
        ({"mixing": {"mixup": 1.0}}, "a mixed image has two"),
    ],
)
def test_config_refuses_what_makes_no_sense(train, words):
    with pytest.raises(UserError, match=words):
        tiny_config({"network": "paco"}, TRAIN | train)


@pytest.mark.parametrize(
    "network, train, words",
    [
        ("bbn", {}, "choose another sampler"),
        ("plain", {"mixing": {"mixup": 1.0}}, "choose another sampler"),
        ("plain", {}, "remove it"),
    ],
)
def test_the_same_images_again_are_for_paco(network, train, words):
    with pytest.raises(UserError, match=words):
        tiny_config({"network": network}, {"second_sampler": "same"} | train)


def test_published_values_are_the_defaults():
    settings = tiny_config({"network": "paco"}, TRAIN).model.network
    assert settings == PaCo(alpha=0.01, beta=1.0, temperature=0.05, queue=1024, width=32)


def test_a_killed_run_goes_on_with_its_queue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    model = {"network": {"name": "paco", "queue": 12, "width": 8, "alpha": 0.1}}
    auxiliaries = [{"name": "frequency"}]
    train = TRAIN | {"ema": 0.9, "micro_batch": 4, "auxiliaries": auxiliaries}
    directory = resumes_exactly(tiny_config(model, train), monkeypatch)

    network, _ = load_network(directory / "weights.safetensors", data)
    assert EMPTY not in network.queue_labels and network.queue.isfinite().all()
    kind, arrays = load_head(directory / "head.safetensors")
    found = load_predictions(directory / "oof.npz", K)  # z, without log π
    np.testing.assert_allclose(
        head_logits(found.features, arrays, kind), found.logits, rtol=1e-4, atol=1e-4
    )

    config = tiny_config(model | {"pretrained": "experiment:whole"}, train)
    fresh = build_network(config.model, some_classes(K))[0]
    said = str(load_pretrained(fresh, config.model, "tiny", "fold0"))
    assert "left new: queue, queue_labels" in said
    assert (fresh.queue_labels == EMPTY).all()
    torch.testing.assert_close(fresh.projection[0].weight, network.projection[0].weight)
    plain = config.model.model_copy(update={"network": Plain()})
    said = str(load_pretrained(build_network(plain, some_classes(K))[0], plain, "tiny", "fold0"))
    assert "left new" not in said and "unused: projection.* (4), queue, queue_labels" in said


def test_weights_of_a_plain_network_start_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    train_tiny(tiny_config(train={"epochs": 2}), "plain")
    model = tiny_config({"network": "paco", "pretrained": "experiment:plain"}, TRAIN).model
    said = str(load_pretrained(build_network(model, some_classes(K))[0], model, "tiny", "fold0"))
    assert "left new: projection.* (4), queue" in said and "unused" not in said
