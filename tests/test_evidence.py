"""What a network looked at: against formulas in float64, place by place, and for every network."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from src.networks.build import NETWORKS, build_network
from src.networks.evidence import class_activation, on_grid, pooled
from tests.fabricate import some_classes
from tests.test_every_network import METHODS
from tests.training_kit import tiny_config

K, BINS = 6, [0, 0, 1, 1, 2, 2]
PLAIN_VIT = {
    "backbone": "vit_tiny_patch16_224",
    "kwargs": {"img_size": [24, 40], "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3},
}


def built(name: str, seed: int = 0, **model) -> nn.Module:
    """A network with random weights, batch norms that have seen something, in eval mode."""
    own, train = METHODS.get(name, ({}, {}))
    torch.manual_seed(seed)
    network, _ = build_network(tiny_config(own | model, train).model, some_classes(K, BINS))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    for parameter in network.classifier.parameters():
        nn.init.normal_(parameter)
    return network.eval()


def images(count: int = 3, height: int = 16, width: int = 24, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, height, width, generator=generator)


def by_hand(maps: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    """max(0, Σ_d w_d A_d / hw) of one image, summed over pairs of a map [D, h, w] and the weight
    [D] of the predicted class in it."""
    _, height, width = maps[0].shape
    out = np.zeros((height, width))
    for a, w in zip(maps, weights, strict=True):
        for i in range(height):
            for j in range(width):
                out[i, j] += sum(w[d] * a[d, i, j] for d in range(len(w))) / (height * width)
    return np.maximum(out, 0)


def last_maps(network: nn.Module, x: torch.Tensor) -> list[np.ndarray]:
    """What a network's CIFAR ResNets average, in the order in which they do."""
    found = []
    with torch.no_grad(), pooled(network) as seen:
        network(x)
        found = [a.detach().numpy() for _, a in seen]
    return found


@pytest.mark.parametrize("name", ["plain", "kt", "paco", "bbn"])
@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("count", [3, 1])
def test_the_map_is_the_class_activation_map_of_the_predicted_class(name, head, count, double):
    model = {"head": head} | ({"cosine_scale": 7.0} if head == "cosine" else {})
    network = built(name, **model).double()
    x = images(count, seed=count).double()
    found = network.evidence(x).maps["class_activation"].numpy()
    assert found.shape == (count, 4, 6) and found.any()
    branches = last_maps(network, x)
    weight = network.classifier.weight.detach().numpy()
    with torch.no_grad():
        guess = network(x).logits.argmax(1).tolist()
    for row in range(count):
        maps = [a[row] for a in branches]
        w = weight[guess[row]]
        if head == "cosine":  # d/df s cos(f, w) = s / |f| (w / |w| - cos(f, w) f / |f|)
            f = np.concatenate([a.mean((1, 2)) for a in maps])
            unit, w = f / np.linalg.norm(f), w / np.linalg.norm(w)
            w = 7.0 / np.linalg.norm(f) * (w - (unit @ w) * unit)
        parts = np.split(w, len(maps))
        np.testing.assert_allclose(found[row], by_hand(maps, parts), atol=1e-12)


def test_the_backbones_map_is_what_it_averages(double):
    """That `pooled` finds the right map, from the layers themselves."""
    network, x = built("plain").double(), images().double()
    b = network.backbone
    with torch.no_grad():
        a = b.layer3(b.layer2(b.layer1(torch.relu(b.bn1(b.conv1(x))))))
    np.testing.assert_array_equal(last_maps(network, x)[0], a.numpy())


def test_experts_count_as_they_do_in_the_mean(double):
    network, x = built("plain", network="ride").double(), images().double()
    found = network.evidence(x).maps["class_activation"].numpy()
    maps, heads = last_maps(network, x), network.classifier.heads
    assert len(maps) == len(heads) > 1
    with torch.no_grad():
        guess = network(x).logits.argmax(1).tolist()
    for row, label in enumerate(guess):
        weights = [h.weight[label].detach().numpy() / len(heads) for h in heads]
        np.testing.assert_allclose(found[row], by_hand([a[row] for a in maps], weights), atol=1e-12)


class InTurn(nn.Module):
    """A gate that sends image i to expert i mod 3."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.eye(3, dtype=z.dtype)[torch.arange(len(z)) % 3]


def test_with_hard_routing_the_map_is_the_chosen_experts(double):
    network, x = built("task_separator").double(), images(6).double()
    network.gate = InTurn()
    for expert in network.experts:
        nn.init.normal_(expert.classifier.weight)
    with torch.no_grad():
        guess = network(x).logits.argmax(1).tolist()
    found = network.evidence(x).maps["class_activation"].numpy()
    for row, label in enumerate(guess):
        own = network.experts[row % 3]
        weight = own.classifier.weight[label].detach().numpy()
        a = last_maps(own, x)[0][row]
        np.testing.assert_allclose(found[row], by_hand([a], [weight]), atol=1e-12)


def test_behind_other_heads_it_is_what_a_place_adds_when_it_grows(double):
    """d z / d e of the map with place ij times (1 + e), by differences; ConvNeXt has a layer norm
    after pooling."""
    network = built("plain", backbone="convnext_atto").double()
    x, grid = images(2, 64, 96).double(), (2, 3)
    found = class_activation(network, x)
    assert found.shape == (2, *grid) and (found == 0).any() and (found > 0).any()
    with torch.no_grad(), pooled(network) as seen:
        guess = network(x).logits.argmax(1)
        a = seen[0][1].detach()

    def score(row: int, where: tuple[int, int], step: float) -> float:
        grown = a[row : row + 1].clone()
        grown[:, :, where[0], where[1]] *= 1 + step
        with torch.no_grad():
            features = network.backbone.forward_head(grown, pre_logits=True)
            return float(network.classifier(features)[0, guess[row]])

    for row in range(2):
        for i in range(grid[0]):
            for j in range(grid[1]):
                slope = (score(row, (i, j), 1e-4) - score(row, (i, j), -1e-4)) / 2e-4
                assert float(found[row, i, j]) == pytest.approx(max(slope, 0), abs=1e-6)


def test_tokens_that_are_averaged_are_a_map(double):
    """Class token and registers are no places; rows are rows where images are not square."""
    kwargs = PLAIN_VIT["kwargs"] | {"global_pool": "avg", "fc_norm": False, "reg_tokens": 2}
    network = built("plain", backbone=PLAIN_VIT["backbone"], kwargs=kwargs).double()
    x = images(2, 24, 40).double()
    found = network.evidence(x).maps["class_activation"].numpy()
    with torch.no_grad():
        tokens = network.backbone.forward_features(x)[:, 3:].numpy()  # [2, 15, 24]
        guess = network(x).logits.argmax(1).tolist()
    for row in range(2):
        w = network.classifier.weight[guess[row]].detach().numpy()
        for i in range(3):
            for j in range(5):
                share = max(float(w @ tokens[row, 5 * i + j]) / 15, 0)
                assert found[row, i, j] == pytest.approx(share, abs=1e-12)


def test_a_plain_vit_shows_the_rollout_of_its_class_token(double):
    network = built("plain", **PLAIN_VIT).double()
    x = images(2, 24, 40).double()
    found = network.evidence(x)
    assert list(found.maps) == ["rollout"] and not found.boxes
    product, b = None, network.backbone
    with torch.no_grad():
        tokens = b.norm_pre(b._pos_embed(b.patch_embed(x)))
        for block in b.blocks:
            n, t, width = tokens.shape
            qkv = block.attn.qkv(block.norm1(tokens)).reshape(n, t, 3, 3, width // 3)
            q, k, _ = qkv.permute(2, 0, 3, 1, 4)
            a = (q @ k.transpose(2, 3) / (width // 3) ** 0.5).softmax(3)
            product = a if product is None else a @ product
            tokens = block(tokens)
    expected = product[:, :, 0, 1:].mean(1).reshape(2, 3, 5)
    torch.testing.assert_close(found.maps["rollout"], expected)


def test_transformers_without_either_show_nothing():
    network = built("plain", backbone="xcit_nano_12_p16_224", kwargs={"img_size": 32})
    assert network.evidence(images(1, 32, 32)).maps == {}


def test_places_that_are_no_grid_are_no_map():
    values = torch.arange(15.0)[None]
    rows = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    assert on_grid(values, images(1, 24, 40)).tolist() == [rows]
    assert on_grid(values, images(1, 40, 24)).shape == (1, 5, 3)
    assert on_grid(values, images(1, 32, 32)) is None


def test_a_tower_of_open_clip_shows_nothing():
    """Its blocks are not timm's, whose attention the rollout reads."""
    pytest.importorskip("open_clip")
    found = built("clip").evidence(images(3, 16, 16))
    assert not found.maps and not found.boxes


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "clip"])
def test_every_network_keeps_to_the_contract(name, mode):
    """Shapes and ranges, one image at a time as all together, and a network as it was before."""
    network = built(name)
    patches = getattr(network.backbone, "patch_embed", None)
    x = images(3) if patches is None else images(3, *patches.img_size)
    next(network.parameters()).requires_grad_(False)  # as with train.freeze
    before = deepcopy(network.state_dict())
    asked = [p.requires_grad for p in network.parameters()]
    own = {module: set(vars(module)) for module in network.modules()}
    with mode():
        found = network.evidence(x)
        alone = [network.evidence(x[i : i + 1]) for i in range(3)]
    assert found.maps or found.boxes
    height, width = x.shape[2:]
    for boxes in found.boxes.values():
        assert boxes.ndim == 3 and boxes.shape[::2] == (3, 4) and boxes.is_floating_point()
        x0, y0, x1, y1 = boxes.unbind(2)
        assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= width).all() and (y1 <= height).all()
        assert (x1 >= x0).all() and (y1 >= y0).all()
    for maps in found.maps.values():
        assert maps.ndim == 3 and len(maps) == 3 and maps.is_floating_point()
        assert maps.isfinite().all() and (maps >= 0).all() and maps.any()
    for kind in ("boxes", "maps"):
        for key, whole in getattr(found, kind).items():
            assert not whole.requires_grad
            single = torch.cat([getattr(one, kind)[key] for one in alone])
            torch.testing.assert_close(single, whole, rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for p in network.parameters())
    assert asked == [p.requires_grad for p in network.parameters()]
    assert not any(module.training for module in network.modules())
    assert own == {module: set(vars(module)) for module in network.modules()}
    after = network.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
