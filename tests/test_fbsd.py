"""FBSD: boosting, suppression, diversification and pooling against slow references, the network on
any CNN, and what it refuses."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import src.networks.build as networks_module
import src.networks.diversify as diversify_module
from src.artifacts.files import read_arrays
from src.artifacts.heads import load_head
from src.config.model import Model
from src.config.networks import FBSD
from src.config.read import load_config, parse_config
from src.data.dataset import Batch
from src.errors import UserError
from src.inference.predict import predict
from src.networks.backbone import build_backbone
from src.networks.base import Progress
from src.networks.build import build_network
from src.networks.diversify import complements, diversify, top_mean
from src.networks.stripes import FBSM
from src.networks.weights import load_network, load_pretrained
from src.posthoc.calibrate import posthoc
from src.rebalance.stage2 import stage2
from src.training.optim import build_optimizer, build_schedule
from src.training.stage1 import stage1
from tests.conftest import ROOT
from tests.fabricate import some_classes
from tests.training_kit import (
    random_batch,
    resumes_exactly,
    tiny_config,
    tiny_dataset,
    train_tiny,
)

K, WIDTHS = 6, (12, 16, 8)
SMALL = {"name": "fbsd", "widths": list(WIDTHS)}
NAMES = ["stage3", "stage4", "stage5", "concat"]
FIRST = Progress(0, 0, 0.0, 10)


def fbsd(backbone="cifar_resnet20", size=16, model=None, **keys):
    torch.manual_seed(0)
    settings = FBSD(widths=WIDTHS, **keys)
    model = {"backbone": backbone, "image_size": size, "pretrained": False} | (model or {})
    network, _ = build_network(Model(network=settings, **model), some_classes(K))
    with torch.no_grad():  # as after some training
        for head in network.classifier.values():
            head.weight.normal_(std=0.3)
    return network


# ---- slow references: float64, one image and one position at a time ----------------------------


def slow_importance(x: np.ndarray, fbsm: FBSM) -> np.ndarray:
    """x: [C, H, W] → B [k]"""
    w, norm = fbsm.weight.detach().numpy().ravel().astype(float), fbsm.norm
    worth = []
    height = x.shape[1] // fbsm.stripes
    for i in range(fbsm.stripes):
        total, pixels = 0.0, 0
        for row in range(i * height, (i + 1) * height):
            for column in range(x.shape[2]):
                z = sum(w[c] * x[c, row, column] for c in range(len(w)))
                z = (z - norm.running_mean.item()) / math.sqrt(norm.running_var.item() + norm.eps)
                total += max(0.0, z * norm.weight.item() + norm.bias.item())
                pixels += 1
        worth.append(math.exp(total / pixels))
    return np.array(worth) / sum(worth)


def slow_fbsm(x: np.ndarray, fbsm: FBSM) -> tuple[np.ndarray, np.ndarray]:
    """x: [C, H, W] → X_b, X_s"""
    share = slow_importance(x, fbsm)
    height = x.shape[1] // fbsm.stripes
    best = next(i for i, b in enumerate(share) if b >= share.max() - 1e-12)
    boosted, suppressed = x.copy(), x.copy()
    for row in range(x.shape[1]):
        boosted[:, row] *= 1 + fbsm.alpha * share[row // height]
        suppressed[:, row] *= fbsm.beta if row // height == best else 1.0
    return boosted, suppressed


def slow_complement(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What the source [C, S] has for each position of the target [C, T]."""

    def cosine(u, v):
        lengths = math.sqrt(u @ u) * math.sqrt(v @ v)
        return u @ v / lengths if lengths else 0.0

    found = np.zeros_like(target)
    for t in range(target.shape[1]):
        weights = [math.exp(-cosine(source[:, s], target[:, t])) for s in range(source.shape[1])]
        for s, weight in enumerate(weights):
            found[:, t] += weight / sum(weights) * source[:, s]
    return found


def slow_diversify(maps: list[np.ndarray], gamma: float) -> list[np.ndarray]:
    return [
        own + gamma * 0.001 * sum(slow_complement(o, own) for j, o in enumerate(maps) if j != i)
        for i, own in enumerate(maps)
    ]


def slow_top_mean(x: np.ndarray, k: int) -> np.ndarray:
    """[C, S] → [C]"""
    return np.array([np.mean(sorted(row, reverse=True)[:k]) for row in x])


# ---- the modules ------------------------------------------------------------------------------


def random_fbsm(rng) -> tuple[FBSM, torch.Tensor]:
    """In eval mode, with statistics of its own; and maps for it: non-square, often of one image or
    one stripe, one time in three with stripes that are worth the same."""
    k, channels = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    height, width = k * int(rng.integers(1, 4)), int(rng.integers(1, 6))
    fbsm = FBSM(channels, k, *rng.uniform(0, 1, 2)).eval()
    with torch.no_grad():
        fbsm.norm.running_mean.fill_(rng.normal())
        fbsm.norm.running_var.fill_(rng.uniform(0.5, 2))
        fbsm.norm.weight.fill_(rng.normal())
        fbsm.norm.bias.fill_(rng.normal())
    x = torch.from_numpy(rng.normal(size=(int(rng.integers(1, 4)), channels, height, width)))
    if rng.random() < 1 / 3:
        x[:, :, -(height // k) :] = x[:, :, : height // k]  # the last stripe is the first again
    if rng.random() < 1 / 6:
        with torch.no_grad():
            fbsm.norm.bias.fill_(-99)  # nothing is worth anything: all tie
    return fbsm, x.float()


def test_boosting_and_suppression_equal_a_loop_over_pixels():
    rng, tied = np.random.default_rng(0), 0
    for _ in range(300):
        fbsm, x = random_fbsm(rng)
        boosted, suppressed, share = fbsm(x)
        for i, image in enumerate(x.double().numpy()):
            want = slow_importance(image, fbsm)
            np.testing.assert_allclose(share[i].detach(), want, atol=1e-5)
            tied += (want >= want.max() - 1e-12).sum() > 1
            for found, slow in zip((boosted, suppressed), slow_fbsm(image, fbsm), strict=True):
                np.testing.assert_allclose(found[i].detach(), slow, atol=1e-5)
    assert tied > 100


def test_masks_are_decided_in_float32_whatever_the_map_is():
    """A difference that bfloat16 cannot tell decides; the mask then is exact."""
    fbsm = FBSM(2, 4, 0.5, 0.5).eval()
    with torch.no_grad():
        fbsm.weight.copy_(torch.tensor([1.0, 1 / 1024]).view(1, 2, 1, 1))
    x = torch.full((3, 2, 8, 5), 1.0, dtype=torch.bfloat16)
    x[0, 1, 6:] += 1  # stripe 3 of image 0 is worth 2⁻¹⁰ more than 1, which no bfloat16 is
    x[1, 1, 2:4] += 1
    for device_context in (torch.autocast("cpu", torch.bfloat16), torch.enable_grad()):
        with device_context:
            boosted, suppressed, share = fbsm(x)
        assert share.dtype == torch.float32 and boosted.dtype == suppressed.dtype == x.dtype
        halved = [(suppressed[i, 0, ::2, 0] < 1).nonzero()[:, 0].tolist() for i in range(3)]
        assert halved == [[3], [1], [0]]
        assert set(suppressed[:, 0].unique().tolist()) == {0.5, 1.0}
        for i, image in enumerate(x.double().numpy()):
            np.testing.assert_allclose(share[i].detach(), slow_importance(image, fbsm), atol=1e-6)
            slow = slow_fbsm(image, fbsm)[0]
            np.testing.assert_allclose(boosted[i].detach().float(), slow, rtol=2**-7)


def test_what_a_stripe_is_worth_learns_from_the_boosted_map():
    fbsm = FBSM(3, 2, 0.5, 0.5)
    boosted, suppressed, _ = fbsm(torch.randn(4, 3, 6, 5))
    (suppressed.sum() + 0 * boosted.sum()).backward()
    assert not fbsm.weight.grad.any()  # which stripe is best is no smooth function
    boosted, _, _ = fbsm(torch.randn(4, 3, 6, 5))
    boosted.square().sum().backward()
    assert fbsm.weight.grad.all() and fbsm.norm.weight.grad.all()


def random_maps(rng, positive=True) -> list[np.ndarray]:
    """Three maps [N, C, S_j] as ReLU leaves them: many zeros, some positions with nothing else."""
    n, c = int(rng.integers(1, 4)), int(rng.integers(1, 6))
    maps = [rng.normal(size=(n, c, int(rng.integers(1, 14)))) for _ in range(3)]
    maps = [np.maximum(m, 0) for m in maps] if positive else maps
    maps[0][:, :, 0] = 0
    return maps


@pytest.mark.parametrize(
    "dtype, atol, cases",
    [(torch.float32, 1e-6, 150), (torch.bfloat16, 1e-4, 60), (torch.float16, 2e-5, 60)],
)
def test_diversification_equals_a_loop_over_positions(dtype, atol, cases):
    """Half precision rounds the thousandth that is added, and not the sum."""
    rng = np.random.default_rng(1)
    for case in range(cases):
        maps = [torch.from_numpy(m).to(dtype) for m in random_maps(rng, case % 2 == 0)]
        gamma, chunk = rng.uniform(0, 3), int(rng.integers(1, 20))
        found = diversify(maps, gamma, gradient=case % 3 == 0, chunk=chunk)
        for i in range(len(maps[0])):
            slow = slow_diversify([m[i].double().numpy() for m in maps], gamma)
            for j in range(3):
                assert found[j].dtype == torch.float32
                np.testing.assert_allclose(found[j][i], slow[j], atol=atol, rtol=1e-6)


def test_sums_over_many_positions_stay_in_the_range_of_half_precision():
    """4000 values of 60 add up to more than float16 has."""
    maps = [torch.full((1, 2, s), 60.0, dtype=torch.float16) for s in (4000, 4000)]
    for found in diversify(maps, 1.0, gradient=False):
        torch.testing.assert_close(found, torch.full_like(found, 60.06), rtol=1e-5, atol=0)


def test_the_maps_of_images_in_a_batch_do_not_meet():
    maps = [torch.randn(3, 4, s) for s in (12, 6, 2)]
    together = diversify(maps, 1.0, gradient=True)
    for i in range(3):
        alone = diversify([m[i : i + 1] for m in maps], 1.0, gradient=True)
        for whole, own in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[i : i + 1], own)


def test_chunks_of_any_size_give_the_same_values_and_gradients(double):
    rng, (s, t) = np.random.default_rng(2), (11, 5)
    a, b = (torch.from_numpy(rng.normal(size=(2, 3, n))).requires_grad_() for n in (s, t))

    def both(chunk):
        found = complements(a, b, F.normalize(a, dim=1), F.normalize(b, dim=1), chunk)
        weighed = sum((f * torch.arange(f.numel()).view(f.shape)).sum() for f in found)
        return *found, *torch.autograd.grad(weighed, (a, b))

    whole = both(s)
    for chunk in range(1, s + 3):
        torch.testing.assert_close(both(chunk), whole)


def test_the_gradient_of_diversification(double):
    maps = [torch.randn(2, 3, s, dtype=torch.float64, requires_grad=True) for s in (6, 4, 2)]

    def diverse(*maps):
        return diversify(list(maps), 900.0, gradient=True, chunk=4)

    assert torch.autograd.gradcheck(diverse, maps)


def test_without_its_gradient_what_is_added_is_a_number(double):
    maps = [torch.randn(2, 3, s, dtype=torch.float64, requires_grad=True) for s in (6, 4, 2)]
    found, followed = (diversify(maps, 900.0, gradient=g) for g in (False, True))
    torch.testing.assert_close(found, followed)
    grads = torch.autograd.grad(sum(f.square().sum() for f in found), maps)
    torch.testing.assert_close(grads, tuple(2 * f.detach() for f in found))


def test_the_gradient_that_is_left_out_is_less_than_a_hundredth_of_the_whole():
    """At the published γ; what `diversity_gradient` says of itself."""
    whole, cheap = fbsd(diversity_gradient=True), fbsd(diversity_gradient=False)
    batch = Batch(*random_batch())
    for network in (whole, cheap):
        terms, _ = network.loss(batch, F.cross_entropy, FIRST)
        sum(terms.values()).backward()
    first, second = (
        torch.cat([p.grad.flatten() for p in network.parameters()]) for network in (whole, cheap)
    )
    assert 0 < (first - second).norm() < 0.01 * first.norm()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made while it lasts."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_similarities_of_no_more_than_a_chunk_are_there_at_a_time():
    """Neither as an intermediate, forward or backward, nor kept for the gradient."""
    s, t, chunk = 400, 300, 50
    a, b = (torch.randn(1, 2, n, requires_grad=True) for n in (s, t))

    def cost(chunk: int) -> tuple[int, int]:
        kept = []
        keep = torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(x.numel()) or x, lambda x: x
        )
        with keep:
            found = complements(a, b, F.normalize(a, dim=1), F.normalize(b, dim=1), chunk)
        with Largest() as largest:
            again = complements(a, b, F.normalize(a, dim=1), F.normalize(b, dim=1), chunk)
            sum(f.sum() for f in again).backward()
        assert len(found) == 2
        return largest.elements, sum(kept)

    largest, kept = cost(chunk)
    assert largest == chunk * t and kept < 40 * (s + t)
    assert cost(s)[0] == s * t  # what the measure sees when there are no chunks


def test_pooling_is_the_mean_of_the_largest_values():
    rng = np.random.default_rng(3)
    for _ in range(200):
        shape = (int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(1, 9)))
        x = rng.integers(-3, 4, shape) / 2 if rng.random() < 0.5 else rng.normal(size=shape)
        k = int(rng.integers(1, 12))  # ties in the first case; more than there are positions
        found = top_mean(torch.from_numpy(x), k)
        np.testing.assert_allclose(found, [slow_top_mean(image, k) for image in x])


# ---- the network ------------------------------------------------------------------------------


def test_the_whole_network_by_hand():
    """Stage by stage through a ResNet, with the slow modules in between."""
    network = fbsd("test_resnet", 64, stripes=(4, 2, 1), gamma=50.0).eval()
    b, images = network.backbone, torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        output = network(images)
        x = b.maxpool(b.act1(b.bn1(b.conv1(images))))
        x, boosted = b.layer1(x), []
        for stage, fbsm in zip(("layer2", "layer3", "layer4"), network.stripes, strict=True):
            x = nn.Sequential(*b.get_submodule(stage))(x)  # without the hook of the stage itself
            slow = [slow_fbsm(image, fbsm) for image in x.double().numpy()]
            boosted.append(torch.tensor(np.array([s[0] for s in slow])).float())
            x = torch.tensor(np.array([s[1] for s in slow])).float()
        maps = [head(v).flatten(2).double() for head, v in zip(network.maps, boosted, strict=True)]
        rows = [slow_diversify([m[i].numpy() for m in maps], 50.0) for i in range(2)]
        pooled = [np.array([slow_top_mean(row[j], 5) for row in rows]) for j in range(3)]
        pooled = [torch.from_numpy(p).float() for p in (*pooled, np.concatenate(pooled, 1))]
        features = [embed(p) for embed, p in zip(network.embed, pooled, strict=True)]
        logits = [head(f) for head, f in zip(network.classifier.values(), features, strict=True)]
    torch.testing.assert_close(output.features, torch.cat(features, 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.logits, sum(logits) / 4, atol=1e-4, rtol=1e-4)
    assert (output.logits.argmax(1) == sum(logits).argmax(1)).all()


@pytest.mark.parametrize("head", ["linear", "cosine", "subcentre"])
def test_logits_are_the_mean_of_heads_on_slices_of_the_features(head):
    network = fbsd(model={"head": head}).eval()
    output = network(random_batch()[0])
    found = network.classifiers()
    assert list(found) == NAMES == list(network.settings.branches)
    width = WIDTHS[-1]
    assert [c for _, c in found.values()] == [(i * width, (i + 1) * width) for i in range(4)]
    logits = [m(output.features[:, slice(*columns)]) for m, columns in found.values()]
    torch.testing.assert_close(torch.stack(logits).mean(0), output.logits)
    assert output.features.shape == (8, network.width) == (8, 4 * width)


def test_the_loss_weighs_the_three_stages_twice_and_is_of_any_criterion():
    network = fbsd().eval()
    batch = Batch(*random_batch())
    terms, output = network.loss(batch, F.cross_entropy, FIRST)
    for name, (head, columns) in network.classifiers().items():
        loss = F.cross_entropy(head(output.features[:, slice(*columns)]), batch.labels)
        torch.testing.assert_close(terms[name], loss * (1 if name == "concat" else 2))
    torch.testing.assert_close(output.logits, network(batch.images).logits)

    def share_of(logits, labels, share=1.0):  # a mixed batch weighs its two sets of labels
        return labels.float().mean() * share

    mixed = Batch(batch.images, batch.labels, partner=batch.labels.flip(0), share=0.25)
    terms, _ = network.loss(mixed, share_of, FIRST)
    assert terms["concat"].item() == pytest.approx(batch.labels.float().mean().item())


def test_the_next_stage_sees_the_suppressed_map_and_heads_the_boosted_one():
    network, images = fbsd().eval(), random_batch()[0]
    seen = []
    network.backbone.layer3.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.maps[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(images)
    suppressed, boosted = seen
    ratio = (suppressed / boosted)[boosted.abs() > 1e-6]
    assert ratio.min() < 0.5 and ratio.max() < 1  # 0.5 / (1 + α B) and 1 / (1 + α B)
    halved = (suppressed / boosted).nan_to_num(9).amin((1, 3)) < 0.5  # [N, H]
    assert halved.view(8, 4, 2).all(2).sum(1).tolist() == [1] * 8  # one stripe of four per image


def test_a_backbone_that_nothing_is_hidden_from_computes_what_it_does_alone():
    network, images = fbsd(beta=1.0, alpha=0.0).eval(), random_batch()[0]
    plain, _ = build_network(Model(backbone="cifar_resnet20", pretrained=False), some_classes(K))
    plain.backbone.load_state_dict(network.backbone.state_dict())
    plain.eval()
    last = []
    network.maps[2].register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
    network(images)
    torch.testing.assert_close(last[0], plain.backbone.forward_features(images))
    network.stripes[0].beta = 0.5
    network(images)
    assert (last[1] - last[0]).abs().max() > 1e-3


def test_a_copy_suppresses_by_itself():
    """The moving average of the weights is a copy; its stages must not call the original's."""
    network, images = fbsd().eval(), random_batch()[0]
    copy = deepcopy(network)
    before = network(images).logits
    for fbsm in copy.stripes:
        fbsm.beta = 0.0
    assert not torch.allclose(copy(images).logits, before)
    torch.testing.assert_close(network(images).logits, before)


@pytest.mark.parametrize(
    "backbone, size",
    [
        ("test_resnet", 64), ("test_efficientnet", 64), ("mobilenetv2_050", 64),
        ("mobilenetv3_small_050", 64), ("convnext_atto", 64), ("regnetx_002", 64),
        ("densenet121", 64), ("test_byobnet", 64), ("cifar_resnet20", 16),
    ],
)  # fmt: skip
def test_every_weight_learns_on_any_cnn(backbone, size):
    """ConvNeXt and MobileNetV3 have layers behind their last map."""
    network = fbsd(backbone, size, top=3)
    images = torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        terms, _ = network.loss(Batch(images, torch.tensor([0, 1])), F.cross_entropy, FIRST)
    sum(terms.values()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in network.parameters())
    for fbsm in network.stripes:
        assert fbsm.weight.grad.any()


@pytest.mark.parametrize(
    "backbone, size, names",
    [
        ("test_resnet", 64, ["layer1", "layer2"]),
        ("mobilenetv2_050", 64, ["blocks.0", "blocks.1", "blocks.2"]),
        ("cifar_resnet20", 16, ["layer1"]),
        ("test_byobnet", 64, ["stages.0", "stages.1"]),
        ("regnetx_002", 64, ["s1", "s2"]),
        ("dla34", 64, []),  # its stages have no names that are known
    ],
)
def test_hidden_features_are_mixed_before_the_first_suppression(backbone, size, names):
    network = fbsd(backbone, size)
    assert network.mix_points() == [network.backbone.get_submodule(name) for name in names]


def test_evidence_is_what_was_boosted_and_suppressed():
    network, images = fbsd().eval(), random_batch()[0]
    with torch.inference_mode():
        found = network.evidence(images)
    assert found.boxes == {}
    kinds = [f"{kind}_{stage}" for stage in NAMES[:3] for kind in ("boost", "suppress")]
    assert list(found.maps) == kinds
    for stage, k in zip(NAMES, (8, 4, 2), strict=False):
        boost, suppress = found.maps[f"boost_{stage}"], found.maps[f"suppress_{stage}"]
        assert boost.shape == suppress.shape == (8, k, 1)
        torch.testing.assert_close(boost.sum((1, 2)), torch.ones(8))
        assert suppress.sum((1, 2)).tolist() == [0.5] * 8
        assert (suppress.argmax(1) == boost.argmax(1)).all()


# ---- training ---------------------------------------------------------------------------------


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    config = tiny_config({"network": SMALL, "dropout": 0.1}, {"ema": 0.9, "micro_batch": 4})
    resumes_exactly(config, monkeypatch)  # asserts that the bytes are equal


@pytest.mark.parametrize("name", ["cub_fbsd", "aircraft_fbsd"])
def test_learning_rates_are_the_published_ones_from_the_first_step_to_the_last(name):
    train = load_config(ROOT / "configs" / f"{name}.yaml").train
    network = fbsd()
    optimizer = build_optimizer(train, network, network.bodies())
    schedule, steps = build_schedule(train, optimizer, 10), 10 * train.epochs

    def rates(step: int) -> dict[str, float]:
        schedule.step_update(step)
        groups = [(id(p), group["lr"]) for group in optimizer.param_groups for p in group["params"]]
        by_id = dict(groups)
        inside = {id(p) for p in network.backbone.parameters()}
        return {
            "backbone": {lr for p, lr in by_id.items() if p in inside},
            "new": {lr for p, lr in by_id.items() if p not in inside},
        }

    assert all(group["weight_decay"] == 5e-4 for group in optimizer.param_groups)
    for step in (0, steps // 3, steps // 2, steps - 1):
        expected = (1 + math.cos(math.pi * step / steps)) / 2
        for part, lr in (("backbone", 2e-4), ("new", 2e-3)):
            assert list(rates(step)[part]) == pytest.approx([lr * expected]), (step, part)


def test_the_shipped_settings_fit_the_shipped_images():
    """Stripes of 448 pixels on ResNet-50, which is built without its weights."""
    for name in ("cub_fbsd", "aircraft_fbsd"):
        model = load_config(ROOT / "configs" / f"{name}.yaml", ["model.pretrained=false"]).model
        assert round(model.image_size / model.crop_pct) == 550
    network, _ = build_network(model, some_classes(K))
    assert [fbsm.stripes for fbsm in network.stripes] == [8, 4, 2]
    assert [head[0].in_channels for head in network.maps] == [512, 1024, 2048]
    assert network.width == 4 * 512


def test_weights_of_a_plain_network_go_into_the_backbone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    plain = train_tiny(tiny_config(train={"epochs": 2}), "plain")
    config = tiny_config({"network": SMALL, "pretrained": "experiment:plain"}, {"epochs": 2})
    network, _ = build_network(config.model, some_classes(K))
    said = str(load_pretrained(network, config.model, "tiny", "fold0"))
    assert "unused: classifier.* (2)" in said and "other shape" not in said
    source = load_network(plain / "weights.safetensors", data)[0].backbone.state_dict()
    for key, tensor in network.backbone.state_dict().items():
        torch.testing.assert_close(tensor, source[key])

    trained = train_tiny(config, "fbsd")
    back = tiny_config({"pretrained": "experiment:fbsd"})
    plain_again, _ = build_network(back.model, some_classes(K))
    load_pretrained(plain_again, back.model, "tiny", "fold0")
    source = load_network(trained / "weights.safetensors", data)[0].backbone.state_dict()
    for key, tensor in plain_again.backbone.state_dict().items():
        torch.testing.assert_close(tensor, source[key])


def test_branches_are_rebalanced_calibrated_and_predicted(tmp_path, monkeypatch):
    """02, 03, 04 and 05: every head, and the mean as it is."""
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    base = tiny_config({"network": SMALL}, {"epochs": 2, "criterion": {"name": "cross_entropy"}})
    tree = base.model_dump() | {
        "stage2": [{"head": "ncm"}],
        "posthoc": {"steps": [{"name": "logit_adjustment"}, {"name": "temperature"}]},
    }
    config = parse_config(tree)
    stage1(config, "exp", [], False)
    table = stage2(config, "exp", False)
    assert set(table["classifier"]) == {f"ncm@{name}" for name in NAMES}
    posthoc(config, "exp")
    found = predict(config, "exp", False)
    parts = [f"stage1@{name}" for name in NAMES]
    assert {"stage1", *parts, *(f"ncm@{name}" for name in NAMES), "posthoc"} == set(found)
    logits = {name: read_arrays(path)["logits"] for name, path in found.items()}
    mean = np.mean([logits[part] for part in parts], 0)
    np.testing.assert_allclose(mean, logits["stage1"], rtol=1e-3, atol=1e-4)
    kind, arrays = load_head(tmp_path / "runs/tiny/exp/stage1/fold1/head@concat.safetensors")
    assert kind == "linear" and arrays["columns"].tolist() == [3 * WIDTHS[-1], 4 * WIDTHS[-1]]


def test_images_grow_in_training_where_their_maps_can_be_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()

    def config(size: int):
        train = {"epochs": 2, "resizing": [{"size": size, "share": 0.5}]}
        return tiny_config({"network": SMALL}, train)

    with pytest.raises(UserError, match="train.resizing, 12 pixels: .* nearest .* 8 and 16"):
        train_tiny(config(12), "twelve")
    assert (train_tiny(config(8), "eight") / "oof.npz").is_file()


# ---- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backbone, words",
    [
        ("vit_tiny_patch16_224", "needs a CNN with 3 scales .* VisionTransformer has none"),
        ("test_mambaout", "one map \\[channels, height, width\\] each"),  # channels last
        ("hrnet_w18_small", "one map \\[channels, height, width\\] each"),  # lists of maps
    ],
)
def test_other_backbones_are_refused(backbone, words):
    with pytest.raises(UserError, match=words):
        fbsd(backbone, 64)


def test_what_does_not_fit_is_refused_before_weights_are_fetched(monkeypatch):
    fetched = []

    def build(model, *, pretrained):
        fetched.append(pretrained)
        return build_backbone(model, pretrained=False)

    monkeypatch.setattr(networks_module, "build_backbone", build)
    for backbone, size in (("vit_tiny_patch16_224", 224), ("test_resnet", 72)):
        model = Model(backbone=backbone, image_size=size, network="fbsd", pretrained=True)
        with pytest.raises(UserError, match="fbsd"):
            build_network(model, some_classes(K), pretrained=True)
    assert fetched == [False, False]
    model = Model(backbone="test_resnet", image_size=64, network="fbsd")
    build_network(model, some_classes(K), pretrained=True)
    assert fetched[-1]


def test_stripes_that_do_not_fit_are_refused_with_the_nearest_sizes_that_do():
    with pytest.raises(UserError) as refused:
        fbsd("mobilenetv2_050", 160)
    said = str(refused.value)
    assert "model.image_size=160" in said and "[8, 4, 2]" in said and "[20, 10, 5]" in said
    assert "128 and 192" in said
    fbsd("mobilenetv2_050", 192)
    with pytest.raises(UserError, match="18\\] pixels high. Set model.image_size, or"):
        fbsd(size=72, stripes=(5, 7, 11))  # at no size nearby
    fbsd("test_efficientnet", 32, stripes=(4, 2, 1))


def test_a_batch_of_one_trains_nothing_and_predicts():
    network, (images, labels) = fbsd(), random_batch(1)
    with pytest.raises(UserError, match="raise train.micro_batch"):
        network.loss(Batch(images, labels), F.cross_entropy, FIRST)
    with pytest.raises(UserError, match="train.micro_batch=2"):
        tiny_config({"network": SMALL}, {"micro_batch": 1})
    assert network.eval()(images).logits.shape == (1, K)


def test_pooling_of_the_backbone_is_refused_because_it_is_not_used():
    with pytest.raises(UserError, match="remove model.pooling=gem"):
        tiny_config({"network": SMALL, "pooling": "gem"})


def test_the_constant_is_that_of_the_authors_code():
    assert diversify_module.EPSILON == round(1 / 784, 3) == 0.001
