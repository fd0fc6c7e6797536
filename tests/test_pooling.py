"""GeM against its formula, and where it goes in a backbone."""

import numpy as np
import pytest
import timm
import torch

from src.config.model import GeM as Settings
from src.config.model import Model
from src.config.read import parse_config
from src.config.training import Train
from src.errors import UserError
from src.networks.backbone import build_backbone
from src.networks.build import build_network
from src.networks.pooling import SMALLEST, GeM, use_gem
from src.networks.weights import load_pretrained
from src.training.optim import build_optimizer
from tests.fabricate import some_classes
from tests.training_kit import random_batch

CNNS = [
    "resnet18",
    "mobilenetv2_100",
    "mobilenetv3_small_050",  # a convolution follows
    "convnext_atto",  # a norm follows
    "regnetx_002",  # within a head
    "mobilevitv2_050",  # a hybrid that ends in a map
    "cifar_resnet20",
]


def slow_gem(x: np.ndarray, p: float) -> np.ndarray:
    """[N, D, h, w] → [N, D], one channel at a time."""
    out = np.zeros(x.shape[:2])
    for i in range(x.shape[0]):
        for d in range(x.shape[1]):
            values = [max(float(v), SMALLEST) for v in x[i, d].ravel()]
            out[i, d] = (sum(v**p for v in values) / len(values)) ** (1 / p)
    return out


def test_hundreds_of_maps():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, d, h, w = rng.integers(1, 6, 4)
        x = rng.normal(size=(n, d, h, w)) * 10 ** rng.uniform(-3, 2)
        x[rng.random(x.shape) < 0.3] = 0  # as after a ReLU, ties too
        x[0, 0] = 0  # a channel that never fires
        p = float(rng.uniform(1, 12))
        pool = GeM(p, flatten=True)
        np.testing.assert_allclose(
            pool(torch.tensor(x)).detach(), slow_gem(np.float32(x), p), rtol=1e-4, atol=1e-6
        )
        last = GeM(p, flatten=True, channels_last=True)(torch.tensor(x).permute(0, 2, 3, 1))
        torch.testing.assert_close(last, pool(torch.tensor(x)))


def test_from_the_mean_to_the_maximum():
    x = torch.rand(3, 4, 5, 7) + 0.1
    torch.testing.assert_close(GeM(1.0, True)(x), x.mean((2, 3)))
    between = [GeM(p, True)(x) for p in (1.0, 3.0, 20.0)]
    assert (between[0] < between[1]).all() and (between[1] < between[2]).all()
    far = GeM(2000.0, True)(x)
    torch.testing.assert_close(far, x.amax((2, 3)), rtol=3e-3, atol=0)


def test_half_precision_and_large_values_stay_in_range():
    x = (300 * torch.rand(2, 3, 4, 4)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = GeM(20.0, True)(x)  # 300^20 is no float32
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach(), slow_gem(x.float().numpy(), 20.0), rtol=1e-4)


def test_the_gradient_takes_the_largest_value_as_a_number_and_is_still_right():
    x, p = torch.rand(2, 3, 2, 3).add(0.05).requires_grad_(), 3.0
    pool = GeM(p, True)
    weight = torch.rand(2, 3)
    (pool(x) * weight).sum().backward()
    wide, exponent = x.detach().double(), torch.tensor(p, dtype=torch.float64)
    step = 1e-6
    for index in [(0, 0, 0, 0), (1, 2, 1, 2), (0, 1, *divmod(int(x[0, 1].argmax()), 3))]:
        near = wide.clone()
        near[index] += step
        change = [slow_gem(v.numpy(), p) for v in (near, wide)]
        want = ((change[0] - change[1]) * weight.numpy()).sum() / step
        assert x.grad[index].item() == pytest.approx(want, rel=1e-3)
    change = [slow_gem(wide.numpy(), exponent.item() + s) for s in (step, 0)]
    want = ((change[0] - change[1]) * weight.numpy()).sum() / step
    assert pool.p.grad.item() == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("name", CNNS)
def test_every_cnn_gets_it_in_the_place_of_its_own_pooling(name):
    """At p = 1 it is the mean of the map's positive part: the same features from positive maps."""
    size = 16 if name.startswith("cifar") else 32
    plain = Model(backbone=name, pretrained=False, image_size=size)
    with_gem = plain.model_copy(update={"pooling": Settings(p=1.0)})
    torch.manual_seed(0)
    own = build_backbone(plain, pretrained=False).eval()
    torch.manual_seed(0)
    other = build_backbone(with_gem, pretrained=False).eval()
    pools = [n for n, m in other.named_modules() if isinstance(m, GeM)]
    assert len(pools) == 1
    images, maps = torch.rand(2, 3, size, size), {}
    for key, backbone in (("own", own), ("gem", other)):
        backbone.get_submodule(pools[0]).register_forward_pre_hook(
            lambda module, x, key=key: (maps.setdefault(key, x[0]), (x[0].abs() + 1,))[1]
        )
    torch.testing.assert_close(own(images), other(images), rtol=1e-4, atol=1e-5)
    assert maps["gem"].ndim == 4 and maps["gem"].shape == maps["own"].shape


def test_channels_last_backbones():
    backbone = timm.create_model(
        "swin_s3_tiny_224", num_classes=0, img_size=56, window_size=7, embed_dim=24,
        depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), strict_img_size=False,
    )  # fmt: skip
    use_gem(Settings(p=1.0), backbone, "swin")
    maps = []
    pool = backbone.head.global_pool
    pool.register_forward_pre_hook(lambda module, x: maps.append(x[0]))
    found = backbone.eval()(torch.rand(2, 3, 56, 56))
    assert found.shape == (2, backbone.num_features)
    torch.testing.assert_close(found, maps[0].clamp(min=SMALLEST).mean((1, 2)))


def test_what_has_no_map_to_pool_is_refused():
    model = Model(backbone="vit_tiny_patch16_224", pretrained=False, pooling="gem")
    with pytest.raises(UserError, match="vision transformers take a token"):
        build_backbone(model, pretrained=False)
    doubled = {"backbone": "resnet18", "kwargs": {"global_pool": "catavgmax"}, "pooling": "gem"}
    with pytest.raises(UserError, match="no such layer"):
        build_backbone(Model(pretrained=False, **doubled), pretrained=False)


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_p_learns_without_weight_decay_at_the_rate_of_the_last_layer(layer_decay):
    model = Model(backbone="resnet18", pretrained=False, image_size=32, pooling="gem")
    network, _ = build_network(model, some_classes(6))
    train = Train(weight_decay=0.1, layer_decay=layer_decay)
    optimizer = build_optimizer(train, network, network.bodies())
    p = network.backbone.global_pool.p
    group = next(g for g in optimizer.param_groups if any(q is p for q in g["params"]))
    assert group["weight_decay"] == 0 and group.get("lr_scale", 1.0) == 1.0
    network(torch.rand(4, 3, 64, 64)).logits.square().sum().backward()
    before = p.item()
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    assert p.item() != before


@pytest.mark.parametrize("network", ["bbn", "ride", "kt", "task_separator"])
def test_every_network_on_the_backbone_pools_by_it(network):
    model = {"backbone": "cifar_resnet20", "pretrained": False, "image_size": 16}
    model |= {"network": network}
    second = {"bbn": "reversed", "task_separator": "class_balanced"}.get(network)
    config = parse_config(
        {"model": model | {"pooling": {"name": "gem", "p": 2}}, "train": {"second_sampler": second}}
    )
    torch.manual_seed(0)
    built, _ = build_network(config.model, some_classes(6, bins=np.arange(6) % 3))
    built.eval()
    images = random_batch()[0]
    before = built(images).features
    for module in built.modules():
        if isinstance(module, GeM):
            module.p.data.fill_(9.0)
    assert not torch.allclose(before, built(images).features, rtol=1e-2)


def test_weights_of_a_network_without_it_fit_and_p_starts_fresh(tmp_path):
    backbone = timm.create_model("resnet18", num_classes=0)
    torch.save(backbone.state_dict(), tmp_path / "resnet18.pth")
    path = str(tmp_path / "resnet18.pth")
    model = Model(backbone="resnet18", pretrained=path, image_size=32, pooling="gem")
    network, _ = build_network(model, some_classes(6))
    note = str(load_pretrained(network, model, "any", "fold0"))
    assert "backbone.global_pool.p" in note and network.backbone.global_pool.p.item() == 3
    torch.testing.assert_close(network.backbone.conv1.weight, backbone.conv1.weight)
