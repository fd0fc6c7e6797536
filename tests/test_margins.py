"""ArcFace, CosFace and sub-centres against loops written from the formulas, in float64."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from src.artifacts.heads import load_head, save_head
from src.config.read import parse_config
from src.data.dataset import Batch
from src.errors import UserError
from src.initialisers import Known, initial_arrays
from src.logits import head_logits
from src.losses import build_criterion
from src.networks.base import mixed
from src.networks.build import build_network
from src.networks.heads import SubCentre, build_head
from tests.fabricate import some_classes
from tests.training_kit import resumes_exactly, tiny_config, tiny_dataset

COUNTS = np.array([100, 25, 0, 4, 1])


def built(name: str, scale: float, counts=COUNTS, **keys):
    config = parse_config(
        {
            "model": {"head": "cosine", "cosine_scale": scale},
            "train": {"criterion": {"name": name, **keys}},
        }
    )
    return build_criterion(config, some_classes(len(counts), counts=counts))


def slow_margins(counts, margin, low, power) -> list[float]:
    """a N^-power + b with a, b from the two ends; no image: as the rarest."""
    seen = [n for n in counts if n]
    most, fewest = max(seen) ** -power, min(seen) ** -power
    if most == fewest:
        return [margin] * len(counts)
    a = (margin - low) / (fewest - most)
    b = low - a * most
    return [a * max(n, min(seen)) ** -power + b for n in counts]


def slow_loss(name, cosines, labels, scale, margins, smoothing) -> list[float]:
    """One image at a time, through the angle itself."""
    losses = []
    for row, y in zip(cosines, labels, strict=True):
        z, m = [scale * c for c in row], margins[y]
        theta = math.acos(row[y])
        if name == "cosface":
            z[y] = scale * (row[y] - m)
        elif theta + m <= math.pi:
            z[y] = scale * math.cos(theta + m)
        else:
            z[y] = scale * (row[y] - m * math.sin(m))
        log_sum = max(z) + math.log(sum(math.exp(v - max(z)) for v in z))
        target = [smoothing / len(z) + (1 - smoothing) * (c == y) for c in range(len(z))]
        losses.append(-sum(t * (v - log_sum) for t, v in zip(target, z, strict=True)))
    return losses


@pytest.mark.parametrize("name", ["arcface", "cosface"])
def test_hundreds_of_random_cases(name):
    rng = np.random.default_rng(0)
    for _ in range(300):
        counts = rng.integers(0, 50, rng.integers(2, 9))
        counts[rng.integers(len(counts))] = 7  # at least one class has images
        scale, n = float(rng.uniform(1, 64)), int(rng.integers(1, 6))
        power = float(rng.choice([0, 0.25, 1]))
        high = float(rng.uniform(0.06, 1))
        low = {"min_margin": float(rng.uniform(0, high))} if power else {}
        smoothing = float(rng.choice([0, 0.1]))
        found = built(name, scale, counts, margin=high, power=power, smoothing=smoothing, **low)
        margins = slow_margins(counts.tolist(), high, low.get("min_margin"), power)
        np.testing.assert_allclose(found.margins, margins, rtol=1e-5)
        cosines = np.cos(rng.uniform(0, np.pi, (n, len(counts))))
        labels = rng.integers(len(counts), size=n)
        # also beside both ends, on the other side of π − m, and equal to other classes
        ends = [1 - 1e-6, -1 + 1e-6, math.cos(math.pi - margins[labels[0]]) - 1e-4, cosines[0, 0]]
        cosines[0, labels[0]] = rng.choice(ends)
        want = slow_loss(name, cosines.tolist(), labels, scale, margins, smoothing)
        z = torch.tensor(scale * cosines)
        got = found.per_sample(z, torch.tensor(labels))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        got = found.per_sample(z.float(), torch.tensor(labels))
        np.testing.assert_allclose(got, want, rtol=2e-2, atol=2e-2 * scale / 64)


def test_the_winners_margins_by_hand():
    """.05 for the most frequent of the classes, .5 for the rarest, and the root of the root."""
    found = built("arcface", 30, np.array([10_000, 16, 1]), power=0.25).margins
    np.testing.assert_allclose(found, [0.05, 0.05 + 0.45 * (1 / 2 - 0.1) / (1 - 0.1), 0.5], 1e-6)
    np.testing.assert_allclose(built("arcface", 30).margins, 0.5)  # all alike unless asked
    np.testing.assert_allclose(built("cosface", 30, np.full(3, 9), power=0.25).margins, 0.35)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.5, 1.5])
def test_a_larger_angle_never_costs_less(margin):
    loss = built("arcface", 30, margin=margin)
    cosine = torch.cos(torch.linspace(0, math.pi, 2001, dtype=torch.float64))
    z = torch.zeros(len(cosine), 5, dtype=torch.float64)
    z[:, 1] = 30 * cosine
    losses = loss.per_sample(z, torch.ones(len(z), dtype=torch.long))
    assert (losses.diff() >= -1e-6).all()
    by_hand = F.cross_entropy(
        30
        * torch.cos(torch.tensor([[0, 0.3 + margin]]) - torch.tensor([[math.pi / 2, 0]])).double(),
        torch.tensor([1]),
    )  # cos(π/2) = 0 beside cos(θ + m)
    angle = torch.tensor([[0.0, 30 * math.cos(0.3), -1e9, -1e9, -1e9]], dtype=torch.float64)
    got = loss.per_sample(angle, torch.tensor([1]))
    torch.testing.assert_close(got[0], by_hand, rtol=1e-4, atol=1e-6)


def test_a_cosine_beyond_its_ends_by_rounding_counts_as_the_end():
    margin, ends = torch.tensor([[0.3], [0.3]]), torch.tensor([[-1.0], [1.0]])
    lowered = built("arcface", 1.0).lowered
    assert torch.equal(lowered(1.01 * ends, margin), lowered(ends, margin))


def test_gradients_are_finite_at_both_ends_and_the_right_ones_between():
    loss = built("arcface", 30)
    for cosine in (1.0, 1 + 1e-7, -1.0, -1 - 1e-7, math.cos(math.pi - 0.5)):
        z = torch.zeros(1, 5)
        z[0, 1] = 30 * cosine
        loss(z.requires_grad_(), torch.tensor([1])).backward()
        assert z.grad.isfinite().all() and z.grad[0, 0] > 0
    z = 20 * torch.randn(6, 5, dtype=torch.float64).tanh()
    y = torch.tensor([0, 1, 2, 3, 4, 0])
    assert torch.autograd.gradcheck(lambda x: loss(x, y), z.requires_grad_())


def test_half_precision_logits_get_float32_margins():
    """bf16 has no number between 1/2 and 1/2 + 1/512: margins taken in it would be lost."""
    loss = built("arcface", 30, margin=0.001)
    z = (30 * torch.tensor([[0.9, 0.5, 0.1, 0.2, 0.3]])).bfloat16()
    batch = Batch(torch.zeros(1), torch.tensor([1]))
    found = mixed(loss, z, batch)
    assert found.dtype == torch.float32
    wide = z.double()
    want = slow_loss("arcface", (wide / 30).tolist(), [1], 30, [0.001] * 5, 0)[0]
    plain = F.cross_entropy(wide, torch.tensor([1])).item()
    assert found.item() == pytest.approx(want, abs=1e-5) and want - plain > 0.01


def test_mixed_images_have_a_margin_for_each_of_their_labels():
    loss, z = built("arcface", 30, power=0.25), 30 * torch.randn(4, 5).tanh()
    first, second = torch.tensor([0, 1, 3, 4]), torch.tensor([4, 1, 0, 2])
    share = torch.tensor([0.2, 0.5, 1.0, 0.0])
    batch = Batch(torch.zeros(4), first, partner=second, share=share)
    want = share * loss.per_sample(z, first) + (1 - share) * loss.per_sample(z, second)
    torch.testing.assert_close(mixed(loss, z, batch), want.mean())


@pytest.mark.parametrize(
    ("model", "criterion", "words"),
    [
        ({}, {"name": "arcface"}, "needs model.head=cosine or subcentre"),
        ({}, {"name": "cosface"}, "needs model.head=cosine or subcentre"),
        ({"head": "cosine"}, {"name": "arcface", "min_margin": 0.1}, "set power=0.25"),
        ({"head": "cosine"}, {"name": "cosface", "power": 1, "margin": 0.01}, "above margin"),
        ({"head": "cosine", "centres": 4}, {"name": "arcface"}, "set head=subcentre"),
        ({"centres": 4}, {"name": "cross_entropy"}, "set head=subcentre"),
        ({"network": "ride", "head": "subcentre"}, {"name": "arcface"}, "mean of linear heads"),
    ],
)
def test_what_makes_no_sense_is_refused(model, criterion, words):
    with pytest.raises(UserError, match=words):
        parse_config({"model": model, "train": {"criterion": criterion}})


# sub-centres


def test_sub_centres_against_a_loop(tmp_path):
    rng = np.random.default_rng(1)
    for _ in range(60):
        n, k, j, d = rng.integers(1, 7, 4)
        head = SubCentre(int(d), int(k), 30.0, int(j))
        f = torch.tensor(rng.normal(size=(n, d)), dtype=torch.float32)
        f[0] = 0  # no direction
        w = head.weight.detach().double().numpy()
        want = np.zeros((n, k))
        for i in range(n):
            x = f[i].double().numpy()
            x = x / max(np.linalg.norm(x), 1e-12)
            for c in range(k):
                want[i, c] = 30 * max(x @ (v / np.linalg.norm(v)) for v in w[c])
        np.testing.assert_allclose(head(f).detach(), want, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(head(f), head(f.float()))
            assert head(f).dtype == torch.float32
        arrays = {name: tensor.numpy() for name, tensor in head.arrays().items()}
        save_head(tmp_path / "head.safetensors", head.kind, arrays)
        kind, arrays = load_head(tmp_path / "head.safetensors")
        np.testing.assert_allclose(head_logits(f.numpy(), arrays, kind), want, atol=1e-4)


def test_the_nearest_centre_alone_learns_from_an_image():
    head = SubCentre(2, 2, 1.0, 2)
    centres = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, -1.0]]])
    head.weight.data.copy_(centres)
    head(torch.tensor([[1.0, 0.2]]))[0, 0].backward()
    assert head.weight.grad[0, 0].any() and not head.weight.grad[0, 1].any()
    assert not head.weight.grad[1].any()


def test_centres_begin_at_the_class_mean_and_beside_it():
    torch.manual_seed(0)
    head = build_head("subcentre", 64, 3, 16.0, 4)
    labels = np.arange(30) % 3
    f = np.random.default_rng(0).normal(size=(30, 64)).astype(np.float32)
    section = parse_config({"model": {"head_init": "class_means"}}).model.head_init
    known = Known(lambda: f, labels, some_classes(3, counts=np.full(3, 10)))
    head.start_from(
        {k: torch.from_numpy(v) for k, v in initial_arrays(section, known, head.kind).items()}
    )
    cosines = F.normalize(head.weight, dim=2)
    cosines = cosines @ cosines.transpose(1, 2)  # [3, 4, 4]
    mean = np.stack(
        [(f / np.linalg.norm(f, axis=1, keepdims=True))[labels == c].mean(0) for c in range(3)]
    )
    first = F.normalize(torch.from_numpy(mean), dim=1)
    torch.testing.assert_close(F.normalize(head.weight[:, 0], dim=1), first)
    off = cosines[:, 0, 1:]
    assert (off > 0.9).all() and (off < 0.99).all()


def test_a_network_with_sub_centres_knows_its_width_and_hands_on_its_head():
    config = tiny_config({"head": "subcentre", "centres": 2, "cosine_scale": 8})
    network, _ = build_network(config.model, some_classes(6))
    assert network.width == 64 and network.classifier.weight.shape == (6, 2, 64)
    network.eval()
    out = network(torch.rand(3, 3, 16, 16))
    kind, arrays = network.heads()[""]
    found = head_logits(out.features.detach().numpy(), arrays, kind)
    np.testing.assert_allclose(found, out.logits.detach(), atol=1e-4)


def test_resuming_with_margins_and_sub_centres_is_exact(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    config = tiny_config(
        {"head": "subcentre", "cosine_scale": 30, "pooling": "gem"},
        {
            "criterion": {"name": "arcface", "power": 0.25, "smoothing": 0.1},
            "deferred": {"weights": True, "start": 0.5},
        },
    )
    resumes_exactly(config, monkeypatch)
