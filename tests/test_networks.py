"""Networks, their weights on disk, and other people's weights."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from src.artifacts.dataset import load_dataset
from src.artifacts.files import sha256
from src.config.model import Model
from src.errors import UserError
from src.networks.build import build_network, check_image_size
from src.networks.cifar_resnet import DEPTHS, Block, CifarResNet
from src.networks.heads import build_head
from src.networks.weights import load_network, load_pretrained, save_network
from tests.fabricate import some_classes

SMALL = Model(backbone="cifar_resnet20", pretrained=False, image_size=16)
TIMM = {"backbone": "resnet18", "pretrained": False, "image_size": 32}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("cifar_resnet20", 269_072), ("cifar_resnet32", 463_504), ("cifar_resnet56", 852_368)],
)
def test_cifar_resnets_have_the_published_number_of_parameters(name, parameters):
    """0.27, 0.46 and 0.85 million (He et al. 2016, table 6), here without the classifier."""
    assert sum(p.numel() for p in CifarResNet(DEPTHS[name]).parameters()) == parameters


def test_the_option_a_shortcut_halves_the_map_and_pads_channels_with_zeros():
    block = Block(16, 32).eval()
    for norm in (block.bn2,):  # silence the residual branch: only the shortcut is left
        torch.nn.init.zeros_(norm.weight)
    x = torch.rand(1, 16, 8, 8)
    out = block(x)
    assert out.shape == (1, 32, 4, 4)
    torch.testing.assert_close(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == 0 and out[:, 24:].abs().sum() == 0


@pytest.mark.parametrize("backbone", ["cifar_resnet20", "resnet18", "vit_tiny_patch16_224"])
def test_a_network_gives_logits_and_the_features_its_classifier_sees(backbone):
    kwargs = {"img_size": 32} if "vit" in backbone else {}
    network, prep = build_network(
        Model(backbone=backbone, pretrained=False, image_size=32, kwargs=kwargs), some_classes(7)
    )
    out = network.eval()(torch.rand(2, 3, 32, 32))
    assert out.logits.shape == (2, 7) and out.features.shape[1] == network.backbone.num_features
    torch.testing.assert_close(network.classifier(out.features), out.logits)
    assert prep.size == 32 and len(prep.mean) == 3


def test_cosine_logits_stay_within_the_scale_and_ignore_the_features_length():
    head = build_head("cosine", 8, 5, scale=16.0)
    f = torch.randn(3, 8)
    assert head(f).abs().max() <= 16
    torch.testing.assert_close(head(f), head(10 * f))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"backbone": "resnet5O"}, "did you mean"),
        ({"backbone": "resnet18", "kwargs": {"patch_size": 3}}, "does not take them"),
        ({"backbone": "cifar_resnet20", "drop_path": 0.1}, "no drop_path"),
    ],
)
def test_what_the_backbone_cannot_do_is_said(change, says):
    with pytest.raises(UserError, match=says):
        build_network(Model(pretrained=False, **change), some_classes(7))


def test_an_image_size_that_the_network_cannot_take_is_said_before_training():
    model = Model(backbone="vit_tiny_patch16_224", pretrained=False, image_size=100)
    network, _ = build_network(model, some_classes(7))
    with pytest.raises(UserError, match="set model.kwargs.img_size=100"):
        check_image_size(network, model)
    check_image_size(network, model.model_copy(update={"image_size": 224}))
    assert network.training


def test_weights_come_back_with_their_preprocessing_and_the_same_bytes(digits):
    data = load_dataset("digits")
    network, prep = build_network(SMALL, some_classes(data.num_classes))
    path = save_network(digits / "a.safetensors", network, SMALL, prep, data)
    again = save_network(digits / "b.safetensors", network, SMALL, prep, data)
    assert sha256(path) == sha256(again)
    loaded, found = load_network(path, data)
    assert found == prep and not loaded.training
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(loaded(x).logits, network.eval()(x).logits)


def test_weights_of_other_classes_or_other_programs_are_refused(digits):
    data = load_dataset("digits")
    network, prep = build_network(SMALL, some_classes(data.num_classes))
    path = save_network(digits / "a.safetensors", network, SMALL, prep, data)
    table = data.directory / "classes.csv"
    table.write_text(table.read_text().replace("zero", "null"))
    with pytest.raises(UserError, match="other classes"):
        load_network(path, data)
    save_file({"x": torch.zeros(1)}, digits / "c.safetensors")
    with pytest.raises(UserError, match="not written by 02"):
        load_network(digits / "c.safetensors", data)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        load_network(path, data)
    with pytest.raises(UserError, match="02_train_stage1.py"):
        load_network(digits / "none.safetensors", data)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_local_file_fills_the_backbone_and_says_what_it_did_not_use(tmp_path, suffix):
    theirs = timm.create_model("resnet18", num_classes=1000)
    path = tmp_path / f"w.{suffix}"
    state = theirs.state_dict()
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    model = Model(**TIMM | {"pretrained": str(path)})
    network, _ = build_network(model, some_classes(7))
    began = load_pretrained(network, model, "digits", "fold0")
    assert str(began) == f"{path}: pretrained body, new head of 7 classes"
    told = {"left new": ["classifier.* (2)"], "unused": ["backbone.fc.* (2)"]}
    assert began.facts() == {"source": str(path), "copied": 120, "of": 122} | told
    torch.testing.assert_close(network.backbone.conv1.weight, theirs.conv1.weight)


def test_what_does_not_fit_is_named_at_length(tmp_path):
    state = timm.create_model("resnet18", num_classes=9).state_dict()
    path, spare = tmp_path / "w.safetensors", {"neck.weight": torch.zeros(9, 512)}
    model = Model(**TIMM | {"pretrained": str(path)})
    missing = {k: v for k, v in state.items() if k != "layer4.1.bn2.weight"}
    for tensors, said in ((state | spare, "unused: "), (missing, "left new: backbone.layer4")):
        save_file(tensors, path)
        network, _ = build_network(model, some_classes(7))
        assert said in (line := str(load_pretrained(network, model, "digits", "fold0"))), line


def test_a_file_of_another_network_is_refused(tmp_path):
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "w.safetensors")
    model = Model(**TIMM | {"pretrained": str(tmp_path / "w.safetensors")})
    with pytest.raises(UserError, match="Is it a file for model.backbone"):
        load_pretrained(build_network(model, some_classes(7))[0], model, "digits", "fold0")
    model = Model(**TIMM | {"pretrained": str(tmp_path / "none.pth")})
    with pytest.raises(UserError, match="is missing"):
        load_pretrained(build_network(model, some_classes(7))[0], model, "digits", "fold0")


def test_another_experiment_gives_everything_but_a_head_of_another_shape(digits):
    data = load_dataset("digits")
    network, prep = build_network(SMALL, some_classes(data.num_classes))
    where = digits / "runs" / "digits" / "old" / "stage1" / "fold1" / "weights.safetensors"
    save_network(where, network, SMALL, prep, data)
    model = SMALL.model_copy(update={"pretrained": "experiment:old"})
    same, _ = build_network(model, some_classes(data.num_classes))
    assert "copied" in str(load_pretrained(same, model, "digits", "fold1"))
    torch.testing.assert_close(same.classifier.weight, network.classifier.weight)
    with pytest.raises(UserError, match="fold0"):  # another fold's network has seen these images
        load_pretrained(same, model, "digits", "fold0")
    model = SMALL.model_copy(update={"pretrained": "experiment:digits/old"})
    wider, _ = build_network(model, some_classes(99))
    line = str(load_pretrained(wider, model, "flowers", "fold0"))
    assert "left new: classifier.* (2); head: new, as runs/flowers" in line
    torch.testing.assert_close(wider.backbone.conv1.weight, network.backbone.conv1.weight)
