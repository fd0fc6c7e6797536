"""Blur before subsampling: kernels, equal keys and shapes, and what it is for."""

import numpy as np
import pytest
import torch
from timm.layers import BlurPool2d

from src.config.model import Model
from src.config.read import parse_config
from src.errors import UserError
from src.networks.anti_alias import BLUR
from src.networks.build import build_network
from src.networks.cifar_resnet import Block, CifarResNet
from tests.fabricate import some_classes

NETS = ["cifar_resnet20", "resnet18", "resnet50", "mobilenetv2_100"]


def network(backbone, **keys):
    torch.manual_seed(0)
    return build_network(Model(backbone=backbone, pretrained=False, **keys), some_classes(5))[
        0
    ].eval()


@pytest.mark.parametrize("width", [3, 5])
def test_the_gradient_of_the_blur(width):
    images = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(BLUR[width](2, stride=2).double(), images)


@pytest.mark.parametrize("width, row", [(3, [1, 2, 1]), (5, [1, 4, 6, 4, 1])])
def test_kernels_are_binomial_and_sum_to_one(width, row):
    kernel = BLUR[width](4, stride=2).filt
    row = torch.tensor(row) / sum(row)
    torch.testing.assert_close(kernel[2, 0], row[:, None] * row)
    torch.testing.assert_close(kernel.sum((1, 2, 3)), torch.ones(4))


@pytest.mark.parametrize("backbone", NETS)
@pytest.mark.parametrize("width", [3, 5])
def test_same_keys_and_shapes_so_that_ordinary_weights_load(backbone, width):
    plain, blurred = network(backbone), network(backbone, anti_alias=True, blur_kernel=width)
    blurs = [m for m in blurred.modules() if isinstance(m, BlurPool2d)]
    assert len(blurs) == 4 and {m.filt_size for m in blurs} == {width}
    assert not any(isinstance(m, BlurPool2d) for m in plain.modules())
    blurred.load_state_dict(plain.state_dict())  # strict
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        one, two = plain(images), blurred(images)
    assert one.features.shape == two.features.shape
    assert not torch.allclose(one.features, two.features)


def test_odd_sizes_come_out_as_without_blur():
    x = torch.randn(1, 16, 15, 9)
    for width in (3, 5):
        assert Block(16, 32, BLUR[width])(x).shape == Block(16, 32)(x).shape


def test_the_finest_pattern_survives_subsampling_only_without_blur():
    """Columns +1, -1, +1, …: every second pixel is a constant whose sign the shift decides, the
    textbook case of aliasing; a blur knows that the mean is zero."""
    row = torch.tensor([1.0, -1.0]).repeat(16)
    pattern = row.expand(1, 1, 32, 32)
    shifted = pattern.roll(1, dims=3)
    assert (pattern[..., ::2, ::2] != shifted[..., ::2, ::2]).all()
    for width in (3, 5):
        blur = BLUR[width](1, stride=2)
        inside = (..., slice(2, -2), slice(2, -2))
        assert blur(pattern)[inside].abs().max() < 1e-6
        assert blur(shifted)[inside].abs().max() < 1e-6


def test_a_shift_by_the_stride_shifts_the_map_by_one():
    x = torch.randn(1, 3, 32, 32)
    for width in (3, 5):
        blur = BLUR[width](3, stride=2)
        moved = blur(x.roll((2, 2), (2, 3)))
        torch.testing.assert_close(
            moved[..., 3:-2, 3:-2], blur(x).roll((1, 1), (2, 3))[..., 3:-2, 3:-2]
        )


def test_features_move_less_when_the_image_moves_by_one_pixel():
    """Random weights, smooth random images, the mean over many: less of a shift gets through."""
    change = {}
    rng = np.random.default_rng(0)
    images = torch.tensor(rng.normal(size=(16, 3, 40, 40)), dtype=torch.float32)
    for name, blur in (("plain", None), ("blur", BLUR[3])):
        torch.manual_seed(1)
        net = CifarResNet(3, blur).eval()
        with torch.no_grad():
            one, two = net(images[..., 4:36, 4:36]), net(images[..., 5:37, 5:37])
        change[name] = ((one - two).norm(dim=1) / one.norm(dim=1)).mean().item()
    assert change["blur"] < 0.8 * change["plain"]


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "convnext_atto", "vgg11"])
def test_backbones_without_a_place_for_it_say_so(backbone):
    with pytest.raises(UserError, match=f"{backbone} has no place for a blur"):
        network(backbone, anti_alias=True)


def test_aa_layer_in_kwargs_points_to_the_key():
    with pytest.raises(UserError, match="anti_alias=true"):
        parse_config({"model": {"kwargs": {"aa_layer": "blur"}}})
    with pytest.raises(UserError, match="blur_kernel"):
        parse_config({"model": {"anti_alias": True, "blur_kernel": 4}})
    with pytest.raises(UserError, match="blur_kernel is of anti_alias, which is off"):
        parse_config({"model": {"blur_kernel": 5}})
