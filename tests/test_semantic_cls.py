"""The semantic CLS token: who reads it, what it is contrasted with, and what it leaves behind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

from src.auxiliaries import build_auxiliaries
from src.config.auxiliaries import SemanticCLS
from src.config.model import Model
from src.data.dataset import Batch
from src.errors import UserError
from src.networks.base import Progress
from src.networks.build import build_network
from src.networks.guest import Guest
from src.networks.weights import load_network
from src.training.loop import Objective
from tests.fabricate import some_classes
from tests.test_auxiliaries import PlainCE
from tests.test_transfg import TINY, VIT, slow_contrast
from tests.training_kit import (
    SIZE,
    random_batch,
    resumes_exactly,
    tiny_config,
    tiny_dataset,
    tiny_text,
    train_tiny,
)

K, E, FIRST = 6, 5, Progress(0, 0, 0.0, 10)
PLAIN = VIT | {"kwargs": VIT["kwargs"] | {"img_size": SIZE}}
BODIES = {"plain": PLAIN, "transfg": TINY}
SEMANTIC = {"auxiliaries": ["semantic_cls"]}


def unit_rows(seed=0, num=K):
    rows = np.random.default_rng(seed).normal(size=(num, E)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def objective_on(body="plain", text=None, seed=0, **settings) -> Objective:
    """Random, with attention that is far from uniform."""
    torch.manual_seed(seed)
    classes = replace(some_classes(K), text=unit_rows() if text is None else text)
    model = Model(**BODIES[body], pretrained=False, image_size=SIZE)
    network, _ = build_network(model, classes)
    auxiliaries = build_auxiliaries((SemanticCLS(**settings),), network, classes)
    with torch.no_grad():
        for block in network.backbone.blocks:
            block.attn.qkv.weight.normal_(std=0.8)
        network.classifier.weight.normal_(std=0.3)
    return Objective(network, PlainCE(), auxiliaries).eval()


def slow_pass(backbone, tokens):
    """Blocks in float64, one head and one query at a time: tokens [T + 1, D] of one image, the
    guest last, whom no other token reads. Returns what leaves the last of these blocks."""
    x = tokens.double().numpy()
    for block in backbone:
        w = {k: v.double().numpy() for k, v in block.state_dict().items()}
        h = layer_norm(x, w["norm1.weight"], w["norm1.bias"])
        qkv = h @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]
        heads, out = block.attn.num_heads, np.zeros_like(x)
        q, k, v = qkv.reshape(len(x), 3, heads, -1).transpose(1, 2, 0, 3)
        for head in range(heads):
            for i in range(len(x)):
                seen = len(x) if i == len(x) - 1 else len(x) - 1
                a = np.exp(k[head, :seen] @ q[head, i] / np.sqrt(q.shape[2]))
                width = q.shape[2]
                out[i, head * width : (head + 1) * width] = (a / a.sum()) @ v[head, :seen]
        x = x + out @ w["attn.proj.weight"].T + w["attn.proj.bias"]
        h = layer_norm(x, w["norm2.weight"], w["norm2.bias"])
        h = torch.from_numpy(h @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"])
        x = x + F.gelu(h).numpy() @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    return torch.from_numpy(x)


def layer_norm(x, weight, bias):
    centred = x - x.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6) * weight + bias


@torch.no_grad()
def slow_tokens(objective, image, label):
    """Class token and semantic token [D] of one image, after the last norm."""
    network, own = objective.network, objective.auxiliaries["semantic_cls"]
    backbone = network.backbone
    guest = own.text[label] @ own.projection.weight.T
    tokens = backbone._pos_embed(backbone.patch_embed(image[None]))[0]
    tokens = torch.cat([tokens, guest[None]])
    if network.__class__.__name__ == "TransFG":
        tokens = slow_pass(backbone.blocks[:-1], tokens)
        x, y = network.evidence(image[None]).boxes["tokens"][0, :, :2].long().T // 3
        chosen = [0, *(1 + y * 5 + x).tolist(), len(tokens) - 1]
        tokens = slow_pass(backbone.blocks[-1:], tokens[chosen])
    else:
        tokens = slow_pass(backbone.blocks, tokens)
    w, b = backbone.norm.weight.double().numpy(), backbone.norm.bias.double().numpy()
    found = layer_norm(tokens.numpy(), w, b)
    return found[0], found[-1]


@pytest.mark.parametrize("body", BODIES)
def test_the_losses_against_one_image_and_one_query_at_a_time_in_float64(body):
    images, labels = random_batch()
    objective = objective_on(body, beta=0.7, margin=0.1)
    terms = objective(Batch(images, labels), FIRST)
    pairs = [slow_tokens(objective, *pair) for pair in zip(images, labels, strict=True)]
    f, s = (np.stack(side) for side in zip(*pairs, strict=True))
    y, total = labels.tolist(), 0.0
    for i in range(len(y)):
        for j in range(len(y)):
            cosine = f[i] @ s[j] / np.linalg.norm(f[i]) / np.linalg.norm(s[j])
            total += 1 - cosine if y[i] == y[j] else max(cosine - 0.1, 0)
    want = 0.7 * total / len(y) ** 2
    if body == "plain":  # TransFG has this term of its own
        want += slow_contrast(f, labels.numpy(), 0.1)
        assert set(terms) == {"criterion", "semantic_cls"}
    else:
        own = slow_contrast(f, labels.numpy(), TINY["network"].get("margin", 0.4))
        assert terms["contrast"].item() == pytest.approx(own, rel=1e-3)
    assert terms["semantic_cls"].item() == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("body", BODIES)
def test_other_text_changes_the_loss_and_neither_logits_nor_features(body):
    """Shuffled names, and nonsense; and without a guest the network says the same."""
    images, labels = random_batch()
    nonsense = 100 * np.ones((K, E), np.float32)
    found = {}
    for name, text in (("own", None), ("shuffled", unit_rows()[::-1].copy()), ("no", nonsense)):
        objective, seen = objective_on(body, text), []
        objective.network.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o))
        loss = objective(Batch(images, labels), FIRST)["semantic_cls"].item()
        alone = objective.network(images)
        torch.testing.assert_close(seen[0].logits, alone.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(seen[0].features, alone.features, rtol=1e-5, atol=1e-5)
        found[name] = loss, seen[0].logits
    assert len({loss for loss, _ in found.values()}) == 3
    assert torch.equal(found["own"][1], found["shuffled"][1])
    assert torch.equal(found["own"][1], found["no"][1])


@pytest.mark.parametrize("body", BODIES)
def test_the_gradient_of_the_criterion_does_not_know_the_text_and_that_of_the_loss_does(body):
    images, labels = random_batch()
    objective = objective_on(body, contrast=0.0)
    projection = objective.auxiliaries["semantic_cls"].projection.weight
    terms = objective(Batch(images, labels), FIRST)
    told = torch.autograd.grad(terms["criterion"], projection, retain_graph=True, allow_unused=True)
    assert told[0] is None or not told[0].any()
    terms["semantic_cls"].backward()
    assert projection.grad.any()
    parts = dict(objective.network.backbone.named_parameters())
    assert all(parts[n].grad.any() for n in ("cls_token", "pos_embed", "blocks.0.mlp.fc1.weight"))


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("vit_small_patch14_dinov2", {}),
        ("vit_small_patch16_dinov3", {}),
        ("vit_base_patch16_siglip_224", {}),
        ("vit_base_patch16_clip_224", {}),
        ("vit_base_patch16_gap_224", {}),
        ("vit_small_patch16_rope_mixed_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True, "qk_norm": True}),
    ],
)
def test_on_transformers_of_every_family_the_image_does_not_notice_the_guest(name, kwargs):
    torch.manual_seed(0)
    size = {"img_size": SIZE, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    vit = timm.create_model(name, num_classes=0, **size, **kwargs).eval()
    images, token = torch.randn(2, 3, SIZE, SIZE), torch.randn(2, 32, requires_grad=True)
    want, guest = vit(images), Guest(vit)
    assert torch.equal(vit(images), want)
    with guest.visits(token):
        torch.testing.assert_close(vit(images), want, rtol=1e-5, atol=1e-5)
    left = guest.left()
    assert left.shape == want.shape
    (left * torch.randn_like(left)).sum().backward()
    assert token.grad.abs().amin(1).gt(0).any() and torch.equal(vit(images), want)


@pytest.mark.parametrize("tuning", ["adaptformer", "lora", {"name": "prompts", "deep": True}])
def test_it_reads_prompts_and_passes_adapters_of_a_frozen_body(tuning):
    torch.manual_seed(0)
    classes = replace(some_classes(K), text=unit_rows())
    network, _ = build_network(Model(**PLAIN, pretrained=False, tuning=tuning), classes)
    objective = Objective(
        network.eval(), PlainCE(), build_auxiliaries((SemanticCLS(),), network, classes)
    )
    images, labels = random_batch()
    want = network(images).logits
    terms = objective(Batch(images, labels), FIRST)
    sum(terms.values()).backward()
    torch.testing.assert_close(network(images).logits, want)
    torch.testing.assert_close(terms["criterion"], F.cross_entropy(want, labels))
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert len(trained) > 3 and all(p.grad is not None for p in trained)


def test_rotary_embeddings_turn_the_image_and_not_the_guest():
    """Against the same guest in front, where the prefix that is not turned is one longer."""
    torch.manual_seed(0)
    kwargs = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": SIZE}
    vit = timm.create_model("vit_small_patch16_dinov3", num_classes=0, **kwargs).eval()
    images, token, guest = torch.randn(2, 3, SIZE, SIZE), torch.randn(2, 32), Guest(vit)
    with guest.visits(token):
        vit(images)
    found = guest.left()
    tokens, rope = vit._pos_embed(vit.patch_embed(images))
    tokens = torch.cat([token[:, None], vit.norm_pre(tokens)], 1)
    mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool)
    mask[1:, 0] = False
    for block in vit.blocks:
        block.attn.num_prefix_tokens += 1
        tokens = block(tokens, rope=rope, attn_mask=mask)
    want = vit.fc_norm(vit.norm(tokens)[:, 0])
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def test_a_compiled_network_has_the_same_terms_and_is_not_traced_again():
    images, labels = random_batch()
    batch, graphs, objective = Batch(images, labels), [], objective_on("transfg")
    want = {name: term.item() for name, term in objective(batch, FIRST).items()}

    def traced(graph, inputs):
        graphs.append(graph)
        return graph.forward

    objective.network.compile(backend=traced)
    traces = []
    for _ in range(3):
        found = objective(batch, FIRST)
        assert {name: term.item() for name, term in found.items()} == pytest.approx(want, rel=1e-5)
        traces.append(len(graphs))
    found["semantic_cls"].backward()
    assert objective.auxiliaries["semantic_cls"].projection.weight.grad.any()
    assert traces[0] == traces[2] > 0


def test_a_pass_that_failed_leaves_no_guest_behind():
    objective = objective_on()
    images, labels = random_batch()
    want = objective.network(images).logits
    objective.criterion.forward = None
    with pytest.raises(TypeError):
        objective(Batch(images, labels), FIRST)
    assert torch.equal(objective.network(images).logits, want)


# ---- whole trainings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, train",
    [
        ("transfg", {"ema": 0.9, "micro_batch": 4, "auxiliaries": ["frequency", "semantic_cls"]}),
        ("plain", {"precision": "bf16", "optimizer": "adamw", "lr": 1e-3, "clip_grad": 1.0}),
    ],
    ids=["accumulated", "bf16"],
)
def test_a_killed_run_writes_the_same_bytes(body, train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    config = tiny_config(BODIES[body], SEMANTIC | train, text=tiny_text())
    whole = resumes_exactly(config, monkeypatch)
    assert "loss_semantic_cls" in (whole / "metrics.csv").read_text().splitlines()[0]


def test_what_is_saved_is_the_network_without_it_and_loads_without_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, text = tiny_dataset(), tiny_text()
    config = tiny_config(TINY, SEMANTIC | {"epochs": 1, "warmup_epochs": 0}, text=text)
    directory = train_tiny(config, "semantic")
    for path in (Path("class_text.npz"), *data.directory.glob("text-*.npz")):
        path.unlink()
    network, _ = load_network(directory / "weights.safetensors", data)
    fresh, _ = build_network(config.model, some_classes(K))
    assert network.state_dict().keys() == fresh.state_dict().keys()


@pytest.mark.parametrize(
    "model, train, words",
    [
        ({"network": "kt"}, {}, "model.network=kt is none; set model.network=plain or transfg"),
        ({"neck": {"width": 8}}, {}, "remove model.neck"),
        ({}, {"mixing": {"mixup": 1.0}}, "a mixed image has two"),
        (TINY, {"auxiliaries": [{"name": "semantic_cls", "contrast": 1}]}, "network.contrast"),
        ({}, {"auxiliaries": [{"name": "semantic_cls", "margin": 1.0}]}, "margin"),
        ({}, {"pseudo": {"experiment": "first", "labels": "soft"}}, "pseudo.labels=hard"),
    ],
)
def test_config_refuses_what_makes_no_sense(model, train, words):
    with pytest.raises(UserError, match=words):
        tiny_config(PLAIN | model, SEMANTIC | train)


@pytest.mark.parametrize("backbone", ["cifar_resnet20", "resnet18", "beit_base_patch16_224"])
def test_other_backbones_are_refused_before_weights_are_fetched(backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    config = tiny_config({"backbone": backbone, "pretrained": "missing.pt"}, SEMANTIC,
                         text=tiny_text())  # fmt: skip
    with pytest.raises(UserError, match="neither timm's .* for example vit_base_patch16_224"):
        train_tiny(config, "refused")


def test_classes_without_text_are_refused():
    network, _ = build_network(Model(**PLAIN, pretrained=False), some_classes(K))
    with pytest.raises(UserError, match="text embeddings of the class names"):
        build_auxiliaries((SemanticCLS(),), network, some_classes(K))
