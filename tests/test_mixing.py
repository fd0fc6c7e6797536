"""Mixing: what reaches the network, what the loss weighs, and a real training cut in two."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from src.artifacts.dataset import load_dataset
from src.config.losses import Mixing
from src.config.read import parse_config
from src.data.dataset import Batch
from src.errors import UserError
from src.losses import build_criterion
from src.networks.base import Progress, mixed
from src.networks.build import build_network
from src.prepare import prepare as prepare_module
from src.training import fit, stage1
from src.training.loop import Objective
from src.training.mixing import Mixer, _paste, hidden_mixing
from tests.fabricate import some_classes
from tests.prepare_kit import config, folder_source
from tests.training_kit import tiny_config, tiny_dataset, train_tiny

COUNTS = np.array([90, 40, 30, 3])


def images(seed: int = 0, labels=(0, 1, 2, 3, 0, 1)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(len(labels), 3, 16, 16, generator=generator), torch.tensor(labels))


def two_streams() -> Batch:
    batch = images()
    batch.other = images(1, (3, 3, 2, 2, 1, 0))
    return batch


def mix(batch: Batch, seed: int = 0, points: int = 3, **keys) -> Batch:
    return Mixer(Mixing(**keys), COUNTS, points)(batch, np.random.default_rng(seed))


def small_network(backbone: str = "cifar_resnet20", size: int = 16):
    model = {"backbone": backbone, "pretrained": False, "image_size": size}
    tree = parse_config({"model": model})
    torch.manual_seed(0)
    network, _ = build_network(tree.model, some_classes(4))
    return network, build_criterion(tree, some_classes(4, counts=COUNTS))


def partner_order(batch: Batch, found: Batch) -> torch.Tensor:
    """The order of partners, found again from an image mixed with mixup."""
    part = (found.images - found.share * batch.images) / (1 - found.share)
    distance = (part[:, None] - batch.images[None]).flatten(2).norm(dim=2)
    assert distance.min(1).values.max() < 1e-2
    return distance.argmin(1)


@pytest.mark.parametrize("seed", range(4))
def test_mixup_is_what_it_says(seed):
    batch = images()
    found = mix(batch, seed, mixup=1.0)
    order = partner_order(batch, found)
    assert sorted(order.tolist()) == list(range(6))
    torch.testing.assert_close(found.partner, batch.labels[order])
    torch.testing.assert_close(found.labels, batch.labels)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_cutmix_keeps_the_share_of_pixels(seed, streams):
    batch = images() if streams == 1 else two_streams()
    found = mix(batch, seed, cutmix=1.0)
    kept = (found.images == batch.images).all(1).float().mean((1, 2))
    moved = found.labels != found.partner  # or an image may be its own partner
    torch.testing.assert_close(kept[moved], torch.full_like(kept[moved], found.share))
    if streams == 2:
        torch.testing.assert_close(found.partner, batch.other.labels)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["mixup", "manifold"])
def test_the_share_spreads_as_alpha_says(kind, alpha):
    """Beta(alpha, alpha) has mean 1/2 and variance 1 / (4 (2 alpha + 1))."""
    batch = Batch(torch.zeros(2, 3, 1, 1), torch.tensor([0, 1]))
    shares = [mix(batch, seed, **{kind: alpha}).share for seed in range(3000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_cutmix_pastes_the_area_that_is_left(share):
    """A rectangle inside the image has the area 1 - lambda, of sides c = sqrt(1 - lambda). Its
    centre may be anywhere, so some are cut at the border: a side is c - c^2 / 4 on average."""
    ours, theirs = torch.zeros(1, 1, 200, 200), torch.ones(1, 1, 200, 200)
    rng = np.random.default_rng(0)
    found = [_paste(ours, theirs, share, rng) for _ in range(1000)]
    areas = np.array([image.mean().item() for image, _ in found])
    np.testing.assert_allclose(areas, [1 - kept for _, kept in found], atol=1e-5)
    side = np.sqrt(1 - share)
    assert areas.max() == pytest.approx(1 - share, abs=0.02)  # whole pixels
    assert areas.mean() == pytest.approx((side - side**2 / 4) ** 2, abs=0.025)


def test_off_or_not_this_time_changes_nothing():
    batch = two_streams()
    assert mix(batch) is batch
    assert mix(batch, mixup=1.0, probability=0.0) is batch
    batch = images()
    assert mix(batch, manifold=1.0, probability=0.0) is batch


def test_half_of_the_steps():
    batch = images()
    mixed_steps = sum(mix(batch, s, mixup=1.0, probability=0.5) is not batch for s in range(400))
    assert 160 < mixed_steps < 240


def remix_shares(share: float, pairs: list[tuple[int, int]], **keys) -> list[float]:
    first, second = torch.tensor(pairs).T
    mixer = Mixer(Mixing(mixup=1.0, remix=True, **keys), COUNTS, 0)
    return [round(s, 4) for s in mixer._label_share(first, second, share).tolist()]


def test_remix_by_hand():
    # κ = 3, τ = .5; images: 90, 40, 30, 3. A share of .3 belongs to the first image
    pairs = [(0, 1), (0, 2), (0, 3), (3, 0), (2, 0), (2, 2)]
    assert remix_shares(0.3, pairs) == [0.3, 0.0, 0.0, 0.3, 0.3, 0.3]
    assert remix_shares(0.7, pairs) == [0.7, 0.7, 0.7, 1.0, 1.0, 0.7]
    assert remix_shares(0.3, pairs, remix_share=0.2) == [0.3] * 6
    assert remix_shares(0.3, pairs, remix_ratio=1e9) == [0.3] * 6


def test_remix_never_takes_from_the_rarer_class():
    pairs = [(a, b) for a in range(4) for b in range(4)]
    for share in np.linspace(0.01, 0.99, 25):
        for (a, b), y in zip(pairs, remix_shares(share, pairs), strict=True):
            rarer = y - share if COUNTS[a] < COUNTS[b] else share - y
            assert rarer >= -1e-4 or COUNTS[a] == COUNTS[b]


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "manifold"])
def test_remix_without_a_limit_is_the_kind_itself(kind):
    for seed in range(6):
        plain = mix(images(), seed, **{kind: 0.8})
        found = mix(images(), seed, **{kind: 0.8}, remix=True, remix_ratio=1e9)
        assert torch.equal(plain.images, found.images)
        assert (plain.hidden is None) == (found.hidden is None)
        if plain.hidden is not None:
            assert plain.hidden.point == found.hidden.point
            assert torch.equal(plain.hidden.order, found.hidden.order)
        torch.testing.assert_close(found.share, torch.full((6,), plain.share))


def test_manifold_at_the_input_is_mixup():
    batch = images()
    for seed in range(5):
        found = mix(batch, seed, points=1, manifold=1.0)
        if found.hidden is None:
            want = mix(batch, seed, mixup=1.0)
            assert torch.equal(found.images, want.images) and found.share == want.share
            assert torch.equal(found.partner, want.partner)
            return
    raise AssertionError("the input was never chosen")


def test_manifold_chooses_all_points_equally_often():
    found = [mix(images(), seed, manifold=1.0).hidden for seed in range(400)]
    points = np.bincount([0 if hidden is None else hidden.point for hidden in found])
    assert len(points) == 4 and points.min() > 70


def at_point(point: int, batch: Batch, **keys) -> Batch:
    for seed in range(100):
        found = mix(batch, seed, manifold=1.0, **keys)
        if (0 if found.hidden is None else found.hidden.point) == point:
            return found
    raise AssertionError(point)


@pytest.mark.parametrize("point", [1, 2, 3])
@pytest.mark.parametrize("streams", [1, 2])
def test_activations_are_mixed_at_the_point(point, streams):
    batch = images() if streams == 1 else two_streams()
    network, _ = small_network()
    network.eval()  # so that an image's activations do not depend on its batch
    found = at_point(point, batch)
    seen = {}
    stages = network.mix_points()
    assert stages == [network.backbone.layer1, network.backbone.layer2, network.backbone.layer3]
    stages[point - 1].register_forward_pre_hook(lambda m, x: seen.update(plain=x[0]))
    with torch.no_grad():
        network(batch.images)
        own = seen["plain"]
        network(batch.images[found.hidden.order] if streams == 1 else batch.other.images)
        others = seen["plain"]
        stages[point - 1].register_forward_hook(lambda m, x, y: seen.update(mixed=x[0]))
        with hidden_mixing(network, found):
            output = network(found.images)
    share = found.hidden.share
    torch.testing.assert_close(seen["mixed"], share * own + (1 - share) * others)
    assert output.logits.shape == (6, 4)
    with torch.no_grad():
        alone, together = network(batch.images[:1]), network(batch.images)
    torch.testing.assert_close(alone.logits[0], together.logits[0])  # nothing stays behind


def test_hooks_are_removed_after_an_error():
    network, _ = small_network()
    with pytest.raises(ZeroDivisionError), hidden_mixing(network, at_point(2, images())):
        _ = 1 / 0
    assert not any(stage._forward_pre_hooks for stage in network.mix_points())


@pytest.mark.parametrize("point", range(4))
@pytest.mark.parametrize("streams", [1, 2])
def test_the_objective_trains_through_autocast(point, streams):
    network, criterion = small_network()
    objective = Objective(network, criterion, nn.ModuleDict()).train()
    found = at_point(point, images() if streams == 1 else two_streams(), remix=True)
    with torch.autocast("cpu", torch.bfloat16):
        terms = objective(found, Progress(0, 0, 0.0, 1))
    terms["criterion"].backward()
    grads = [p.grad for p in network.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("point", [0, 2])
@pytest.mark.parametrize("remix", [False, True])
def test_the_gradient_of_a_mixed_loss(point, remix, double):
    """To the images, through the mixing of pixels or activations and of labels."""
    network, criterion = small_network()
    network.double().eval()
    batch = images()
    found = at_point(point, batch, remix=remix)

    def loss(pixels):
        with hidden_mixing(network, found):
            return mixed(criterion, network(pixels).logits, found)

    pixels = found.images.double().requires_grad_()
    assert torch.autograd.gradcheck(loss, pixels, fast_mode=True)


def test_an_equal_partner_leaves_everything_as_it_is():
    """Mixing images with themselves, at any point, is training without mixing."""
    network, criterion = small_network()
    network.eval()
    batch = images()
    batch.other = Batch(batch.images, batch.labels)
    for point in range(4):
        found = at_point(point, batch)
        with hidden_mixing(network, found):
            loss = mixed(criterion, network(found.images).logits, found)
        torch.testing.assert_close(loss, mixed(criterion, network(batch.images).logits, batch))


@pytest.mark.parametrize("backbone, points", [("resnet10t", 4), ("mobilenetv2_035", 7)])
def test_stages_of_timm_backbones(backbone, points):
    network, _ = small_network(backbone, 32)
    assert len(network.mix_points()) == points
    network.eval()
    found = at_point(2, two_streams(), points=2)
    with torch.no_grad(), hidden_mixing(network, found):
        assert network(found.images).logits.shape == (6, 4)


def test_a_backbone_without_known_stages_is_refused():
    with pytest.raises(UserError, match="no stages"):
        mix(images(), points=0, manifold=1.0)


@pytest.mark.parametrize(
    "train, words",
    [
        ({"mixing": {"remix": True}}, "switch on mixup"),
        ({"mixing": {"mixup": 1.0, "off_epochs": 30}}, "no step is mixed"),
        ({"mixing": {"manifold": 1.0}, "compile": True}, "train.compile=false"),
        ({"second_sampler": "reversed"}, "remove it"),
        (
            {
                "second_sampler": "reversed",
                "mixing": {"manifold": 1.0},
                "deferred": {"sampling": True},
            },
            "choose one",
        ),
    ],
)
def test_refused(train, words):
    with pytest.raises(UserError, match=words):
        parse_config({"train": train})


# a real training


def test_the_last_epochs_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    seen, forward = set(), Objective.forward

    def watched(self, batch, progress):
        seen.add((progress.epoch, batch.partner is not None))
        return forward(self, batch, progress)

    monkeypatch.setattr(Objective, "forward", watched)
    mixing = {"mixup": 1.0, "off_epochs": 2}
    train_tiny(tiny_config(train={"mixing": mixing, "epochs": 4}), "off")
    assert seen == {(0, True), (1, True), (2, False), (3, False)}


def job(home: str, **train) -> stage1.Fold:
    network = {"backbone": "cifar_resnet20", "pretrained": False, "image_size": 16, "crop_pct": 1.0}
    tree = config(
        Path("raw/birds").resolve(),
        model=network | {"head": "cosine"},
        train={
            "epochs": 4,
            "batch_size": 8,
            "micro_batch": 4,
            "ema": 0.9,
            "criterion": {"name": "ldam"},
            "second_sampler": "progressive",
            "sampler": "square_root",
            "mixing": {"manifold": 1.0, "cutmix": 0.5, "remix": True, "off_epochs": 1},
            **train,
        },
    )
    data = load_dataset("birds")
    directory = Path("runs/birds") / home / "stage1" / "fold0"
    return stage1.Fold(tree, data, 0, directory, stage1.start("fp32"))


def test_a_stopped_training_goes_on_as_if_it_had_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare_module, "draw_figures", lambda *args: [])
    folder_source(Path("raw/birds"), {"a_owl": 18, "b_tit": 9, "c_jay": 6})
    prepare_module.prepare(config(Path("raw/birds").resolve()))
    whole = stage1.train_fold(job("whole"), overwrite=False)

    real, done = fit.save_checkpoint, []

    def killed(directory, state):
        real(directory, state)
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        stage1.train_fold(job("cut"), overwrite=False)
    assert not (Path("runs/birds/cut/stage1/fold0") / "manifest.json").exists()
    again = stage1.train_fold(job("cut"), overwrite=False)
    assert again == whole
    files = [Path("runs/birds") / h / "stage1/fold0/weights.safetensors" for h in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
