"""Weights from elsewhere: all that fits is loaded, on whatever grid, and the rest is named."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from src.artifacts.dataset import load_dataset
from src.config.model import Model
from src.config.networks import BBN
from src.config.training import Train
from src.networks.base import Body
from src.networks.build import build_network
from src.networks.weights import load_pretrained, save_network
from src.training.optim import build_optimizer
from tests.fabricate import some_classes

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}
LARGER = {"img_size": 48}
VIT = "vit_tiny_patch16_224"
NO_TOKEN = {"class_token": False, "global_pool": "avg"}
SWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
ARCHITECTURES = {  # name, arguments, those of the file, those of the network
    "class token": (VIT, SMALL, {"img_size": 32}, LARGER),
    "no class token": (VIT, SMALL | NO_TOKEN, {"img_size": 32}, LARGER),
    "larger patches": (VIT, SMALL, {"img_size": 32}, {"img_size": 32, "patch_size": 8}),
    "two tokens": ("deit_tiny_distilled_patch16_224", SMALL, {"img_size": 32}, LARGER),
    "relative tables": (
        "swin_tiny_patch4_window7_224",
        SWIN,
        {"img_size": 32, "window_size": 4},
        {"img_size": 64, "window_size": 8},
    ),
    "beit": ("beit_base_patch16_224", SMALL, {"img_size": 32}, LARGER),
    "eva": ("eva02_tiny_patch14_224", SMALL | {"patch_size": 16}, {"img_size": 32}, LARGER),
}


def network_of(name: str, kwargs: dict, path, classes: int = 7, **keys):
    model = Model(backbone=name, pretrained=str(path), kwargs=kwargs, image_size=48, **keys)
    torch.manual_seed(1)
    return build_network(model, some_classes(classes))[0], model


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("case", ARCHITECTURES)
def test_a_local_file_of_another_size_loads_as_timm_loads_it(case, suffix, tmp_path):
    name, common, small, large = ARCHITECTURES[case]
    path = tmp_path / f"w.{suffix}"
    torch.manual_seed(0)
    state = timm.create_model(name, **common, **small).state_dict()
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    network, model = network_of(name, common | large, path)
    said = str(load_pretrained(network, model, "digits", "fold0"))
    assert "other shape" not in said
    overlay = {"file": str(path)}
    wanted = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **common, **large
    ).state_dict()
    for key, tensor in network.backbone.state_dict().items():
        torch.testing.assert_close(tensor, wanted[key], rtol=0, atol=0, msg=key)
        if "token" in key:
            assert torch.equal(tensor, state[key])
    grids = [k for k, v in wanted.items() if k in state and v.shape != state[k].shape]
    assert grids, "the case has a grid to resample"


def test_the_same_size_is_taken_as_it_is(tmp_path):
    theirs = timm.create_model(VIT, **SMALL, img_size=48, num_classes=0)
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    network, model = network_of(VIT, SMALL | LARGER, tmp_path / "w.safetensors")
    load_pretrained(network, model, "digits", "fold0")
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[key], tensor)


@pytest.mark.parametrize("kind", ["plain", "task_separator"])
def test_another_experiment_of_another_size_is_resampled_in_every_copy(kind, digits):
    data = load_dataset("digits")
    old = Model(
        backbone=VIT, kwargs=SMALL | {"img_size": 32}, pretrained=False, network=kind, image_size=32
    )
    source, prep = build_network(old, data.classes_of(data.images))
    where = digits / "runs" / "digits" / "old" / "stage1" / "fold0" / "weights.safetensors"
    save_network(where, source, old, prep, data)
    model = old.model_copy(
        update={"kwargs": SMALL | LARGER, "pretrained": "experiment:old", "image_size": 48}
    )
    network, _ = build_network(model, data.classes_of(data.images))
    count = len(network.state_dict())
    said = str(load_pretrained(network, model, "digits", "fold0"))
    grids = [k for k in network.state_dict() if k.endswith("pos_embed")]
    assert f"copied {count - len(grids)} of {count} tensors; resized: {grids[0]}" in said
    assert "new" not in said and "unused" not in said
    for body, theirs in zip(network.bodies(), source.bodies(), strict=True):
        wanted = timm.layers.resample_abs_pos_embed(theirs.module.pos_embed, (3, 3))
        torch.testing.assert_close(body.module.pos_embed, wanted)
        assert torch.equal(body.module.cls_token, theirs.module.cls_token)


def test_a_tensor_of_another_shape_is_named_and_its_siblings_load(tmp_path):
    theirs = timm.create_model(VIT, **SMALL, img_size=48)
    state = theirs.state_dict()
    state["blocks.1.mlp.fc1.weight"] = torch.zeros(64, 32)
    state["norm.weight"] = torch.zeros(16)
    save_file(state, tmp_path / "w.safetensors")
    network, model = network_of(VIT, SMALL | LARGER, tmp_path / "w.safetensors")
    fresh = network.backbone.norm.weight.clone()
    torch.nn.init.ones_(network.backbone.norm.bias)
    torch.nn.init.ones_(network.backbone.blocks[1].mlp.fc1.bias)
    said = str(load_pretrained(network, model, "digits", "fold0"))
    odd = "backbone.blocks.1.mlp.fc1.weight, backbone.norm.weight"
    assert f"left new, other shape: {odd}; unused" in said
    assert torch.equal(network.backbone.norm.weight, fresh)
    assert torch.equal(network.backbone.norm.bias, state["norm.bias"])
    assert torch.equal(network.backbone.blocks[1].mlp.fc1.bias, state["blocks.1.mlp.fc1.bias"])


def test_a_head_keeps_no_bias_without_its_weight(digits):
    """A network with wider features has as many classes, so that the bias alone would fit."""
    data = load_dataset("digits")
    old = Model(backbone="cifar_resnet20", pretrained=False, image_size=16)
    source, prep = build_network(old, data.classes_of(data.images))
    torch.nn.init.ones_(source.classifier.bias)
    where = digits / "runs" / "digits" / "old" / "stage1" / "fold0" / "weights.safetensors"
    save_network(where, source, old, prep, data)
    model = old.model_copy(update={"pretrained": "experiment:old", "network": BBN()})
    network, _ = build_network(model, data.classes_of(data.images))
    said = str(load_pretrained(network, model, "digits", "fold0"))
    assert "left new, other shape: classifier.* (2)" in said
    assert not network.classifier.bias.any()


# ---- bodies ------------------------------------------------------------------------------------


def scales(train: Train, network, bodies: list[Body]) -> dict[str, float]:
    """The factor on the lr of each parameter, by name."""
    optimizer = build_optimizer(train, network, bodies)
    names = {id(p): name for name, p in network.named_parameters()}
    groups = optimizer.param_groups
    return {names[id(p)]: g.get("lr_scale", 1.0) for g in groups for p in g["params"]}


def test_factor_and_layers_of_a_body_reach_the_optimizer():
    network, _ = build_network(
        Model(backbone="resnet18", pretrained=False, image_size=32), some_classes(5)
    )
    train = Train(layer_decay=0.5, head_lr_factor=3.0)
    first, last = "backbone.conv1.weight", "backbone.layer4.1.conv2.weight"
    whole = scales(train, network, [Body(network.backbone)])
    assert whole[first] < whole[last] <= 1 and whole["classifier.weight"] == 3
    slower = scales(train, network, [Body(network.backbone, 0.1)])
    assert slower == pytest.approx(
        {k: v * (0.1 if k.startswith("backbone.") else 1) for k, v in whole.items()}
    )
    flat = scales(train, network, [Body(network.backbone, 0.1, layered=False)])
    assert {flat[k] for k in flat if k.startswith("backbone.")} == {0.1}
    even = scales(Train(), network, [Body(network.backbone, 0.1)])
    assert even[first] == even[last] == 0.1 and even["classifier.weight"] == 1


@pytest.mark.parametrize("kind, part", [("bbn", "rebalancing."), ("ride", "branches.")])
def test_copies_of_the_last_layers_are_not_layered(kind, part):
    model = Model(backbone="resnet18", pretrained=False, image_size=32, network=kind)
    network, _ = build_network(model, some_classes(5))
    found = scales(Train(layer_decay=0.5), network, network.bodies())
    assert {v for k, v in found.items() if k.startswith(part)} == {1.0}
    assert found["backbone.conv1.weight"] < 1
