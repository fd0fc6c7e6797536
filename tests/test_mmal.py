"""MMAL-Net: three looks through one backbone, when they begin, its heads, what it refuses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from src.artifacts.files import read_arrays, read_json, read_table
from src.artifacts.heads import load_head
from src.config.model import Model
from src.config.networks import MMAL
from src.config.read import parse_config
from src.config.tree import dump_config
from src.data.dataset import Batch
from src.errors import UserError
from src.inference.predict import predict
from src.networks.base import Progress
from src.networks.build import build_network
from src.networks.weights import load_pretrained
from src.posthoc.calibrate import posthoc
from src.rebalance.stage2 import stage2
from src.training.stage1 import stage1
from tests.fabricate import some_classes
from tests.test_localise import slow_object, slow_parts
from tests.training_kit import (
    resumes_exactly,
    tiny_config,
    tiny_dataset,
    train_tiny,
)

K, D = 6, 64
LATER, FIRST = Progress(1, 9, 0.3, 4), Progress(0, 0, 0.0, 4)
CNNS = {  # → the block before the last map
    "resnet18": "layer4.0",
    "mobilenetv2_100": "blocks.6.0",
    "mobilenetv3_small_100": "blocks.4.2",
    "efficientnet_b0": "blocks.6.0",
    "convnext_atto": "stages.3.blocks.0",
    "regnety_002": "s4.b6",
    "cifar_resnet20": "layer3.1",
}


def mmal(backbone="cifar_resnet20", size=32, head="linear", **keys):
    torch.manual_seed(0)
    model = Model(
        backbone=backbone, network=MMAL(**keys), pretrained=False, image_size=size, head=head
    )
    network, _ = build_network(model, some_classes(K))
    with torch.no_grad():
        network.classifier.weight.normal_(std=0.3)
    return network.eval()  # batch norm by its statistics: images do not depend on each other


def look(network, images):
    """Features, last map and the one before of a CIFAR ResNet, block by block."""
    b = network.backbone
    x = b.layer2(b.layer1(F.relu(b.bn1(b.conv1(images)))))
    before = b.layer3[1](b.layer3[0](x))
    last = b.layer3[2](before)
    return last.mean((2, 3)), last, before


def cut(image, box, size):
    x0, y0, x1, y1 = map(int, box)
    return F.interpolate(image[:, :, y0:y1, x0:x1], size, mode="bilinear", align_corners=True)


def slow_looks(network, images):
    """Features of images, objects [N, D] and parts [N, n, D], and their boxes, image by image."""
    settings, size, found = network.windows, tuple(images.shape[2:]), []
    for image in images[:, None]:
        raw, last, before = look(network, image)
        box = slow_object(last[0].detach().numpy(), before[0].detach().numpy(), size)
        thing = cut(image, box, size)
        seen, last, _ = look(network, thing)
        inside = slow_parts(last[0].detach().numpy(), settings.scales, settings.kept, size)
        half = (size[0] // 2, size[1] // 2)
        parts = torch.cat([look(network, cut(thing, part, half))[0] for part in inside])
        found.append((raw[0], seen[0], parts, torch.tensor(box), torch.tensor(inside)))
    return [torch.stack(column) for column in zip(*found, strict=True)]


def slow_terms(network, images, labels):
    raw, seen, parts, *_ = slow_looks(network, images)
    classify = network.classifier
    each = [F.cross_entropy(classify(parts[:, i]), labels) for i in range(parts.shape[1])]
    return {
        "raw": F.cross_entropy(classify(raw), labels),
        "object": F.cross_entropy(classify(seen), labels),
        "parts": sum(each) / len(each),
    }


def batch_of(count=5, size=32):
    generator = torch.Generator().manual_seed(1)
    images = F.interpolate(torch.randn(count, 3, 8, 8, generator=generator), (size, size))
    return Batch(images, torch.arange(count) % K)


# ---- the loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", ["cub", "aircraft"])
def test_the_loss_and_its_gradient_are_those_of_the_formula(windows, double):
    """Boxes are numbers there, so no gradient can pass through their choice."""
    network, batch = mmal(windows=windows).double(), batch_of()
    batch.images = batch.images.double()
    terms, output = network.loss(batch, F.cross_entropy, LATER)
    want = slow_terms(network, batch.images, batch.labels)
    assert list(terms) == list(want) == ["raw", "object", "parts"]
    for name in terms:
        torch.testing.assert_close(terms[name], want[name], atol=1e-5, rtol=1e-5)
        parameters = list(network.parameters())
        found, right = (torch.autograd.grad(t[name], parameters) for t in (terms, want))
        assert all(g.abs().sum() > 0 for g in found)
        for a, b in zip(found, right, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(output.logits, network(batch.images).logits)


@pytest.mark.parametrize("raw_epochs", [1, 3])
def test_at_first_it_learns_from_whole_images_alone(raw_epochs):
    network, batch = mmal(raw_epochs=raw_epochs), batch_of()
    last = Progress(raw_epochs - 1, 0, 0.2, 9)
    terms, output = network.loss(batch, F.cross_entropy, last)
    assert list(terms) == ["raw"]
    features = network.backbone(batch.images)
    torch.testing.assert_close(
        terms["raw"], F.cross_entropy(network.classifier(features), batch.labels)
    )
    torch.testing.assert_close(output.features, torch.cat([features, features], 1))
    after, _ = network.loss(batch, F.cross_entropy, Progress(raw_epochs, 0, 0.3, 9))
    assert list(after) == ["raw", "object", "parts"]


def test_parts_of_mixed_images_keep_both_labels_and_the_share_of_each():
    network, batch = mmal(kept=(1, 2, 1)), batch_of(4)
    batch.partner, batch.share = batch.labels.flip(0), torch.tensor([0.9, 0.2, 0.6, 0.3])
    seen = []

    def criterion(logits, labels, share):
        seen.append((labels.tolist(), share.tolist()))
        return logits.sum() * 0

    network.loss(batch, criterion, LATER)
    labels, partners = seen[4:]  # of the parts, after the images and the objects
    assert labels[0] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert partners[0] == labels[0][::-1]
    assert labels[1] == pytest.approx([0.9] * 4 + [0.2] * 4 + [0.6] * 4 + [0.3] * 4)
    assert partners[1] == pytest.approx([1 - share for share in labels[1]])


# ---- heads and evidence ------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_prediction_is_by_the_object_and_every_branch_is_a_head(parts, head):
    network, images = mmal(parts_at_inference=parts, head=head), batch_of().images
    raw, seen, of_parts, *_ = slow_looks(network, images)
    with torch.no_grad():
        output = network(images)
    branches = {"raw": raw, "object": seen, "parts": of_parts.mean(1)}
    branches = dict(list(branches.items())[: 2 + parts])
    assert tuple(branches) == network.settings.branches == tuple(network.classifiers())
    assert network.width == output.features.shape[1] == len(branches) * D
    torch.testing.assert_close(output.logits, network.classifier(seen), atol=1e-3, rtol=1e-3)
    for name, (module, (start, end)) in network.classifiers().items():
        assert module is network.classifier
        features = output.features[:, start:end]
        torch.testing.assert_close(features, branches[name], atol=1e-3, rtol=1e-3)
        assert network.heads()[name][1]["columns"].tolist() == [start, end]


def test_evidence_is_boxes_in_the_pixels_of_the_image():
    network, images = mmal(), batch_of().images
    with torch.inference_mode():
        boxes = network.evidence(images).boxes
    *_, objects, inside = slow_looks(network, images)
    assert list(boxes) == ["object", "parts"]
    assert boxes["object"].tolist() == objects[:, None].tolist()
    for (x0, y0, x1, y1), parts, found in zip(
        objects.tolist(), inside.tolist(), boxes["parts"].tolist(), strict=True
    ):
        sx, sy = (x1 - x0) / 32, (y1 - y0) / 32
        want = [[x0 + sx * a, y0 + sy * b, x0 + sx * c, y0 + sy * d] for a, b, c, d in parts]
        assert np.allclose(found, want, atol=1e-4)
        assert all(x0 <= a < c <= x1 + 1e-4 and y0 <= b < d <= y1 + 1e-4 for a, b, c, d in found)


# ---- backbones ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", CNNS)
def test_any_cnn_whose_last_blocks_are_known(backbone):
    """The first look computes what the whole backbone does, and the second map is the block's."""
    network = mmal(backbone, 64 if backbone != "cifar_resnet20" else 16)
    size = 64 if backbone != "cifar_resnet20" else 16
    images = torch.randn(2, 3, size, size)
    assert network.places.before == CNNS[backbone]
    with torch.no_grad():
        maps = network._look(images)
        output = network(images)
    whole = network.backbone(images)
    torch.testing.assert_close(maps.features, whole)
    torch.testing.assert_close(output.features[:, : whole.shape[1]], whole)
    assert maps.last.shape[2:] == maps.before.shape[2:] == network.places.grid
    terms, _ = network.train().loss(Batch(images, torch.arange(2)), F.cross_entropy, LATER)
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    "backbone, size, keys, words",
    [
        ("vit_tiny_patch16_224", 224, {}, "VisionTransformer ends in tokens"),
        ("swin_tiny_patch4_window7_224", 224, {}, "SwinTransformer ends in tokens"),
        ("densenet121", 64, {}, "DenseNet"),
        ("resnet10t", 64, {}, "ResNet"),
        ("resnet18", 100, {}, "cells of 32 pixels.*nearest sizes are 96 and 128"),
        ("cifar_resnet20", 18, {}, "cells of 4 pixels.*nearest sizes are 16 and 20"),
        ("resnet18", 20, {}, "nearest sizes are 32$"),
        (
            "resnet18",
            96,
            {"windows": [[[3, 3]], [[2, 4]]], "kept": [1, 1]},
            "2 x 4 cells is larger than the map of an image of 96 pixels, 3 x 3 cells",
        ),
    ],
)
def test_what_cannot_be_looked_at_is_refused_while_it_is_built(backbone, size, keys, words):
    with pytest.raises(UserError, match=words):
        mmal(backbone, size, **keys)


def test_windows_of_ones_own():
    network = mmal(windows=[[[2, 3], [3, 2]], [[8, 8]]], kept=[2, 1])
    assert network.windows.sizes == [7 * 6 + 6 * 7, 1] and network.windows.count == 3
    assert network.windows.boxes[-1].tolist() == [0, 0, 32, 32]


# ---- config ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network, train, words",
    [
        ({}, {"mixing": {"cutmix": 1.0}}, "train.mixing.mixup alone"),
        ({}, {"mixing": {"manifold": 1.0}}, "train.mixing.mixup alone"),
        ({}, {"compile": True}, "its parts one by one"),
        ({}, {"second_sampler": "reversed"}, "remove it"),
        ({"raw_epochs": 3}, {}, "must be below train.epochs"),
        ({"kept": [1, 2]}, {}, "windows has 3 scales"),
        ({"windows": [[[2, 2]]]}, {}, "windows has 1 scales"),
        ({"windows": [[]], "kept": [1]}, {}, "at least one shape"),
        ({"windows": [[[2]]], "kept": [1]}, {}, "windows"),
        ({"windows": "cubs"}, {}, "windows"),
        ({"kept": [0, 1, 1]}, {}, "kept"),
        ({"parts": 3}, {}, "unknown key"),
    ],
)
def test_config_refuses_what_makes_no_sense(network, train, words):
    with pytest.raises(UserError, match=words):
        tiny_config({"network": {"name": "mmal"} | network}, train)


@pytest.mark.parametrize(
    "network",
    [{}, {"windows": "aircraft"}, {"windows": [[[2, 2], [1, 3]], [[4, 4]]], "kept": [2, 1]}],
)
def test_a_dump_is_taken_and_says_its_heads(network):
    config = tiny_config({"network": {"name": "mmal", "parts_at_inference": True} | network})
    assert parse_config(dump_config(config)) == config
    assert config.head_names[:4] == ["stage1", "stage1@raw", "stage1@object", "stage1@parts"]


# ---- training and what follows -----------------------------------------------------------------


def test_mixed_images_and_margins_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    train = {"mixing": {"mixup": 1.0, "remix": True}, "micro_batch": 4, "criterion": "seesaw"}
    directory = train_tiny(tiny_config({"network": "mmal", "dropout": 0.2}, train), "mixed")
    history = read_table(directory / "metrics.csv")
    assert (history["loss_object"] != "").tolist() == [False, True, True]


def test_a_killed_run_goes_on_and_begins_its_looks_when_it_should(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    network = {"name": "mmal", "raw_epochs": 2}
    resumes_exactly(tiny_config({"network": network}, {"ema": 0.9}), monkeypatch)


def test_weights_of_a_plain_network_are_all_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    train_tiny(tiny_config(train={"epochs": 2}), "plain")
    config = tiny_config({"network": "mmal", "pretrained": "experiment:plain"})
    network, _ = build_network(config.model, some_classes(K))
    said = str(load_pretrained(network, config.model, "tiny", "fold0"))
    count = len(network.state_dict())
    assert said.endswith(f"copied {count} of {count} tensors")


def test_branches_are_rebalanced_calibrated_and_predicted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    config = tiny_config({"network": {"name": "mmal", "parts_at_inference": True}})
    extra = {
        "stage2": [{"head": "ncm"}, {"head": "crt", "epochs": 1}],
        "posthoc": {"steps": ["temperature"]},
    }
    config = parse_config(dump_config(config) | extra)
    stage1(config, "exp", [], False)
    stage2(config, "exp", False)
    posthoc(config, "exp")
    predict(config, "exp", False)
    names = [f"{t}@{b}" for t in ("stage1", "ncm", "crt") for b in ("raw", "object", "parts")]
    tried = read_json("runs/tiny/exp/posthoc/posthoc.json")["tried"]
    assert {trial["head"] for trial in tried} >= set(names)
    found = {n: read_arrays(f"runs/tiny/exp/predict/{n}.npz")["logits"] for n in [*names, "stage1"]}
    np.testing.assert_allclose(found["stage1@object"], found["stage1"], atol=1e-4)
    assert not np.allclose(found["stage1@raw"], found["stage1"], atol=1e-3)
    for i, branch in enumerate(("raw", "object", "parts")):
        arrays = load_head(f"runs/tiny/exp/stage1/fold0/head@{branch}.safetensors")[1]
        assert arrays["columns"].tolist() == [i * D, (i + 1) * D]
