"""CLIP against formulae and open_clip's own functions, from its files to a submission's logits."""

import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from src.artifacts.files import read_json
from src.artifacts.heads import load_head
from src.artifacts.predictions import load_predictions
from src.data.dataset import Batch
from src.errors import UserError
from src.logits import head_logits
from src.networks.base import Progress
from src.networks.build import build_network, check_resizing
from src.networks.clip import Captions, caption_loss, embedded
from src.networks.clip_towers import text_tower
from src.networks.weights import load_network, load_pretrained
from src.report.context import gather
from src.report.results import stages
from src.training.optim import build_optimizer
from tests.fabricate import some_classes
from tests.training_kit import (
    NAMES,
    SIZE,
    random_batch,
    resumes_exactly,
    tiny_config,
    tiny_dataset,
    train_tiny,
)

open_clip = pytest.importorskip("open_clip", reason="pip install -r requirements-text.txt")

KWARGS = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 2, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"layers": 1, "width": 8, "heads": 2, "context_length": 12},
}
MODEL = {"backbone": "open_clip/ViT-B-32", "head": "cosine", "kwargs": KWARGS}
CONTRASTIVE = {"name": "clip", "tuning": "contrastive"}
TEMPLATES = ["a photo of a {}.", "{}, a type of bird."]
CAPTIONS = [[t.replace("{}", n) for t in TEMPLATES] for n in NAMES]
SCALE = 20.0


def model(network="clip", **more):
    return tiny_config(MODEL | {"network": network} | more).model


def begun(network="clip", seed: int = 0, **more):
    """A network that has its captions; its weights are random."""
    torch.manual_seed(seed)
    found = build_network(model(network, **more), some_classes(6))[0]
    found.begin(None, CAPTIONS)
    return found


def whole_clip(side: int = SIZE, custom: bool = True):
    """A whole CLIP as open_clip builds it, both towers, at its own scale."""
    cfg = open_clip.get_model_config("ViT-B-32")
    vision = cfg["vision_cfg"] | KWARGS["vision_cfg"] | {"image_size": side}
    text = cfg["text_cfg"] | KWARGS["text_cfg"]
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    torch.manual_seed(3)
    found = kind(8, vision, text, init_logit_scale=float(np.log(SCALE)))
    return found.eval()


@pytest.fixture
def weights(tmp_path):
    """A file as open_clip's users have it."""
    clip, path = whole_clip(custom=False), tmp_path / "open_clip_model.safetensors"
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, path)
    return clip, path


def started(path, network="clip", **more):
    section = model(network, pretrained=str(path), **more)
    found, prep = build_network(section, some_classes(6))
    said = load_pretrained(found, section, "tiny", "fold0")
    found.begin(path, CAPTIONS)
    return found.eval(), said


# ---- the loss -----------------------------------------------------------------------------------


def slow_loss(f, t, labels, scale, diagonal):
    """The module docstring's L, pair by pair in float64."""
    f, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f, t))
    n, total = len(labels), 0.0
    for one, other in ((f, t), (t, f)):
        for i in range(n):
            s = [scale * float(one[i] @ other[j]) for j in range(n)]
            log_z = np.log(sum(np.exp(v) for v in s))
            right = [i] if diagonal else [j for j in range(n) if labels[j] == labels[i]]
            total += -sum(s[j] - log_z for j in right) / len(right) / n / 2
    return total


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 1, 0, 2, 1], [4, 4]])
def test_captions_loss_is_that_of_all_pairs(labels, diagonal):
    rng = np.random.default_rng(0)
    f, t = rng.normal(size=(2, len(labels), 5))
    args = [torch.tensor(x) for x in (f, t)] + [torch.tensor(labels), torch.tensor(7.0)]
    found = float(caption_loss(*args, diagonal))
    assert found == pytest.approx(slow_loss(f, t, labels, 7.0, diagonal), rel=1e-5)


def test_images_of_one_class_do_not_repel_each_others_captions():
    """Two images between both captions of their class, which are right for either: the diagonal
    pulls each to its own and away from the other's."""
    t, labels = torch.eye(2), torch.zeros(2, dtype=torch.long)
    slopes = []
    for diagonal in (False, True):
        f = torch.ones(2, 2, requires_grad=True)
        caption_loss(f, t, labels, torch.tensor(10.0), diagonal).backward()
        slopes.append(f.grad)
    assert torch.allclose(slopes[0], torch.zeros(2, 2), atol=1e-6)
    assert (slopes[1].diagonal() < -0.1).all() and slopes[1][0, 1] > 0.1


def test_each_image_takes_the_captions_of_its_class_in_turn():
    found = Captions(torch.zeros(5, 3), [["a", "b"], ["c"], ["d", "e"]])
    labels, rows = torch.tensor([0, 1, 2, 2]), torch.tensor([4, 5, 6, 7])
    batch = Batch(torch.zeros(4, 3, 2, 2), labels, rows=rows)
    assert found.of(batch, 0).tolist() == [0, 2, 3, 4]
    assert found.of(batch, 1).tolist() == [1, 2, 4, 3]


def test_contrastive_loss_of_a_network_is_that_of_its_embeddings():
    network = begun(CONTRASTIVE)
    images, labels = random_batch()
    batch = Batch(images, labels, rows=torch.arange(8))
    terms, output = network.loss(batch, None, Progress(1, 0, 0.5, 2))
    which = [2 * int(y) + (i + 1) % 2 for i, y in enumerate(labels)]
    t = network.text(network.captions.tokens[which])
    arrays, found = [x.detach().double().numpy() for x in (output.features, t)], terms["captions"]
    want = slow_loss(*arrays, labels.tolist(), float(network.classifier.scale.detach()), False)
    assert float(found.detach()) == pytest.approx(want, rel=1e-5)


# ---- zero-shot ----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["clip", CONTRASTIVE, CONTRASTIVE | {"text_tower": "frozen"}])
def test_it_starts_as_the_zero_shot_classifier_of_open_clip(weights, network):
    clip, path = weights
    found, said = started(path, network)
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=12)
    want = open_clip.build_zero_shot_classifier(clip, tokenizer, NAMES, TEMPLATES).T
    assert torch.allclose(found.classifier.weight, want, atol=1e-6)
    images, _ = random_batch()
    with torch.no_grad():
        logits = SCALE * clip.encode_image(images, normalize=True) @ want.T
        assert torch.allclose(found(images).logits, logits, atol=1e-4)
    assert str(said).endswith(f"pretrained body, new head of {len(NAMES)} classes")


def test_several_names_and_templates_of_a_class_count_the_same():
    network = begun()
    rows = torch.randn(5, 8)
    mean = Captions(torch.zeros(5, 3), [["a"] * 3, ["b"] * 2]).by_class(rows)
    want = torch.stack([rows[:3].sum(0), rows[3:].sum(0)])
    assert torch.allclose(mean, want / want.norm(dim=1, keepdim=True))
    assert torch.allclose(network.classifier.weight.norm(dim=1), torch.ones(6))


def test_position_embeddings_follow_the_image_size(weights):
    found, said = started(weights[1], image_size=32)
    assert found.backbone.positional_embedding.shape == (65, 16)
    assert "resized: backbone.positional_embedding" in str(said)
    assert found(torch.randn(1, 3, 32, 32)).logits.isfinite().all()


def test_a_whole_clip_of_today_and_an_image_tower_alone_are_read_too(tmp_path, weights):
    want = started(weights[1])[0].state_dict()
    clip = whole_clip()
    clip.load_state_dict(open_clip.model.convert_to_custom_text_state_dict(weights[0].state_dict()))
    save_file(clip.state_dict(), tmp_path / "new.safetensors")
    found = started(tmp_path / "new.safetensors")[0].state_dict()
    assert all(torch.equal(found[k], v) for k, v in want.items())
    save_file(clip.visual.state_dict(), tmp_path / "tower.safetensors")
    section = model("plain", pretrained=str(tmp_path / "tower.safetensors"))
    plain = build_network(section, some_classes(6))[0]
    load_pretrained(plain, section, "tiny", "fold0")
    images, _ = random_batch()
    with torch.no_grad():
        assert torch.allclose(plain.eval()(images).features, clip.encode_image(images), atol=1e-5)
    with pytest.raises(UserError, match=r"tower.safetensors: \d+ of \d+ tensors of TextTrans"):
        started(tmp_path / "tower.safetensors")


# ---- what is trained ----------------------------------------------------------------------------


def test_the_scale_stays_in_bounds_and_learns_at_the_bound():
    network = begun({"name": "clip", "max_scale": 50})
    head = network.classifier
    with torch.no_grad():
        head.log_scale.fill_(9.0)
    assert float(head.eval().scale.detach()) == pytest.approx(50)
    assert float(head.arrays()["scale"]) == pytest.approx(50)
    head.train()
    batch = Batch(*random_batch())
    network.loss(batch, nn.CrossEntropyLoss(), Progress(0, 0, 0, 1))[0]["criterion"].backward()
    assert float(head.log_scale.detach()) == pytest.approx(np.log(50))
    assert head.log_scale.grad != 0
    with torch.no_grad():
        head.log_scale.fill_(-1.0)
    assert float(head.eval().scale.detach()) == 1


def test_a_fixed_scale_is_the_configs(weights):
    found, _ = started(weights[1], {"name": "clip", "scale": "fixed"}, cosine_scale=25)
    assert not [n for n, _ in found.named_parameters() if "scale" in n]
    assert float(found.heads()[""][1]["scale"]) == 25


@pytest.mark.parametrize(
    ("network", "towers"),
    [("clip", 0), (CONTRASTIVE, 1), (CONTRASTIVE | {"text_tower": "frozen"}, 0)],
)
def test_every_parameter_is_used_and_a_tower_that_is_not_is_gone(network, towers):
    network = begun(network)
    batch = Batch(*random_batch(), rows=torch.arange(8))
    sum(network.loss(batch, nn.CrossEntropyLoss(), Progress(0, 0, 0, 1))[0].values()).backward()
    assert all(p.grad is not None for p in network.parameters())
    text = [n for n, _ in network.named_parameters() if n.startswith("text.")]
    assert bool(text) == bool(towers)
    fitted = {id(p) for p in network.parameters()}
    train = tiny_config(MODEL | {"network": "clip"}, {"optimizer": "adamw"}).train
    groups = build_optimizer(train, network, network.bodies()).param_groups
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(fitted)


def test_predictions_follow_the_text_tower():
    network = begun(CONTRASTIVE).eval()
    before = network.classifier.weight.clone()
    with torch.no_grad():
        network.text.text_projection.normal_()
    network.train()
    assert torch.equal(network.classifier.weight, before)
    rows = embedded(network.text, network.captions.tokens)
    network.eval()
    assert torch.allclose(network.classifier.weight, network.captions.by_class(rows))
    assert not torch.allclose(network.classifier.weight, before)


def test_layer_decay_knows_the_layers_of_the_image_tower():
    network = begun()
    train = tiny_config(MODEL | {"network": "clip"}, {"layer_decay": 0.5}).train
    groups = build_optimizer(train, network, network.bodies()).param_groups
    of = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    body = network.backbone
    stem, first, last = body.conv1.weight, *(b.mlp.c_fc.weight for b in body.transformer.resblocks)
    assert [of[id(p)] for p in (stem, first, last, body.proj)] == [0.25, 0.5, 1.0, 1.0]


def test_adam_decays_through_the_gradient():
    config = {"optimizer": "adam", "beta2": 0.98, "epsilon": 1e-6, "weight_decay": 0.1, "lr": 0.01}
    train, layer = tiny_config(train=config).train, nn.Linear(2, 2)
    group = build_optimizer(train, layer, []).param_groups[0]
    assert group["betas"] == (0.9, 0.98) and group["eps"] == 1e-6
    before = layer.weight.detach().clone()
    optimizer = build_optimizer(train, layer, [])
    layer.weight.grad = torch.zeros(2, 2)
    layer.bias.grad = torch.zeros(2)
    optimizer.step()
    g = 0.1 * before  # Adam's first step is lr · g / (|g| + eps), whatever its betas
    assert torch.allclose(layer.weight, before - 0.01 * g / (g.abs() + 1e-6), atol=1e-6)


# ---- a whole run --------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["clip", CONTRASTIVE])
def test_a_run_resumes_exactly_and_05_needs_no_text(network, tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    keys = MODEL | {"network": network, "pretrained": str(weights[1])}
    config = tiny_config(keys, {"micro_batch": 4, "ema": 0.9}, text={"templates": TEMPLATES})
    directory = resumes_exactly(config, monkeypatch)
    with safe_open(directory / "weights.safetensors", "np") as file:
        assert not [key for key in file.keys() if "text" in key]  # noqa: SIM118
    monkeypatch.setattr("src.networks.clip.text_tower", None)
    network, prep = load_network(directory / "weights.safetensors", data)
    assert prep.mean == open_clip.OPENAI_DATASET_MEAN
    oof = load_predictions(directory / "oof.npz", data.num_classes)
    kind, arrays = load_head(directory / "head.safetensors")
    assert kind == "cosine"
    np.testing.assert_allclose(head_logits(oof.features, arrays, kind), oof.logits, atol=1e-4)
    zero = load_predictions(directory / "zero_shot.npz", data.num_classes)
    assert zero.image_id.tolist() == oof.image_id.tolist() and zero.features is None
    assert not np.allclose(zero.logits, oof.logits, atol=1e-2)
    assert "zero_shot.npz" in read_json(directory / "manifest.json")["outputs"]


@pytest.mark.parametrize("network", ["clip", CONTRASTIVE])
def test_no_epoch_is_the_zero_shot_classifier_and_a_row_of_the_report(
    network, tmp_path, monkeypatch, weights
):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    keys = MODEL | {"network": network, "pretrained": str(weights[1])}
    config = tiny_config(keys, {"epochs": 0}, text={"templates": TEMPLATES})
    directory = train_tiny(config, "zero")
    oof = load_predictions(directory / "oof.npz", data.num_classes)
    zero = load_predictions(directory / "zero_shot.npz", data.num_classes)
    assert np.array_equal(zero.logits, oof.logits)
    with safe_open(directory / "weights.safetensors", "np") as file:
        assert set(file.keys()) == {"classifier.weight", "classifier.log_scale"}
    again = load_network(directory / "weights.safetensors", data)[0]
    want, _ = started(weights[1], network)
    found = again.state_dict()
    assert all(torch.equal(found[k], v) for k, v in want.state_dict().items() if k in found)
    report = gather("tiny", ["zero"], [config])
    rows = report.experiments[0].rows
    noise = rows["zero-shot"].pop("noise")
    assert list(rows) == ["zero-shot", "stage1"] and rows["zero-shot"] == rows["stage1"]
    assert noise == report.experiments[0].stages["stage1"].noise
    assert ">zero-shot<" in stages(report)


def test_other_templates_are_another_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    keys, train = MODEL | {"network": "clip"}, {"epochs": 1, "warmup_epochs": 0}
    train_tiny(tiny_config(keys, train), "one")
    with pytest.raises(UserError, match="templates"):
        train_tiny(tiny_config(keys, train, text={"templates": ["{}"]}), "one")


def test_the_heads_rows_go_by_class_from_another_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    keys, train = MODEL | {"network": "clip"}, {"epochs": 1, "warmup_epochs": 0}
    there = train_tiny(tiny_config(keys, train), "one")
    config = tiny_config(keys | {"pretrained": "experiment:one"}, train)
    network, _ = build_network(config.model, data.classes_of(data.images))
    load_pretrained(network, config.model, "tiny", "fold0")
    network.begin(there / "weights.safetensors", CAPTIONS)
    want = load_network(there / "weights.safetensors", data)[0].state_dict()
    found = network.state_dict()
    assert found.keys() == want.keys()
    assert all(torch.equal(found[k], v) for k, v in want.items())


# ---- errors, before any weights -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"backbone": "open_clip/ViT-B-33"}, "did you mean open_clip/ViT-B-32"),
        ({"backbone": "open_clip/ViT-B-32.opanai"}, "no weights 'opanai', but 'openai'"),
        ({"backbone": "open_clip/ViT-B-32", "pretrained": True}, "which weights.*'openai'"),
        ({"backbone": "open_clip/coca_ViT-B-32"}, "more than one embedding"),
        ({"kwargs": {"vision_cfg": {"depth": 3}}}, "model.kwargs: .*depth"),
        ({"drop_path": 0.1}, "model.drop_path is of timm's models"),
        ({"pooling": "gem"}, "model.pooling=gem"),
    ],
)
def test_what_open_clip_cannot_build_is_said_with_what_it_can(more, said):
    section = model(**more)
    with pytest.raises(UserError, match=said):
        build_network(section, some_classes(6), pretrained=section.pretrained is True)


@pytest.mark.parametrize(
    ("keys", "train", "said"),
    [
        ({"backbone": "resnet18"}, {}, "both towers of a CLIP"),
        ({"head": "linear"}, {}, "set model.head=cosine"),
        ({"cosine_scale": 25}, {}, "model.network.scale=fixed"),
        ({}, {"criterion": "ldam"}, "margins for one scale"),
        ({"network": CONTRASTIVE}, {"criterion": "focal"}, "train.criterion: .* a loss of its own"),
        ({"network": CONTRASTIVE}, {"mixing": {"mixup": 1.0}}, "two captions"),
        ({"network": CONTRASTIVE, "pretrained": "experiment:a"}, {}, "no experiment keeps"),
        ({"network": CONTRASTIVE, "head_init": "class_means"}, {}, "model.head_init=class_means"),
        ({"network": {"name": "clip", "targets": "diagonal"}}, {}, "targets is of tuning"),
    ],
)
def test_choices_that_exclude_each_other(keys, train, said):
    with pytest.raises(UserError, match=said):
        tiny_config(MODEL | {"network": "clip"} | keys, train)


def test_a_tag_says_its_activation_and_what_it_expects_of_pixels():
    section = model(backbone="open_clip/ViT-B-32.openai", interpolation=None)
    network, prep = build_network(section, some_classes(6))
    names = {type(module).__name__ for module in network.modules()}
    assert "QuickGELU" in names and prep.interpolation == "bicubic"
    assert "QuickGELU" in {type(module).__name__ for module in text_tower(section).modules()}
    plain = build_network(model(backbone="open_clip/ViT-B-32.laion2b_e16"), some_classes(6))[0]
    assert "QuickGELU" not in {type(module).__name__ for module in plain.modules()}


def test_weights_out_of_reach_name_the_key_of_a_local_file(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    section = model(backbone="open_clip/ViT-B-32.openai", pretrained=True)
    network, _ = build_network(section, some_classes(6))
    with pytest.raises(UserError, match="no network.*model.pretrained=path/to/"):
        load_pretrained(network, section, "tiny", "fold0")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.setattr("src.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install -r requirements-text.txt"):
        build_network(model(), some_classes(6))


def test_images_of_other_sizes_are_refused_where_positions_are_fixed():
    config = tiny_config(MODEL | {"network": "clip"}, {"resizing": [{"size": 8, "share": 0.4}]})
    network, _ = build_network(config.model, some_classes(6))
    with pytest.raises(UserError, match="does not take images of 8 x 8"):
        check_resizing(network, config.model, some_classes(6), config.train.resizing)
