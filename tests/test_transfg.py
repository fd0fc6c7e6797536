"""TransFG: the patches chosen, the contrast, overlapping patches, warm starts."""

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from timm.layers import resample_abs_pos_embed
from torch.nn import functional as F

from src.config.model import Model
from src.data.dataset import Batch
from src.errors import UserError
from src.networks.attention import class_row
from src.networks.base import Progress
from src.networks.build import build_network, check_image_size
from src.networks.transfg import contrast, overlap
from src.networks.weights import load_network, load_pretrained
from tests.fabricate import some_classes
from tests.test_attention import slow_rollout, whole_maps
from tests.training_kit import (
    SIZE,
    random_batch,
    resumes_exactly,
    tiny_config,
    tiny_dataset,
    train_tiny,
)

K, FIRST = 6, Progress(0, 0, 0.0, 10)
VIT = {
    "backbone": "vit_tiny_patch16_224",
    "kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2},
}
TINY = VIT | {"network": {"name": "transfg", "stride": 3}}  # a grid of 5 x 5


def transfg(seed=0, size=SIZE, network=None, **keys):
    """Random, with attention that is far from uniform."""
    torch.manual_seed(seed)
    settings = TINY["network"] | (network or {})
    kwargs = VIT["kwargs"] | keys.pop("kwargs", {})
    model = Model(
        backbone=keys.pop("backbone", VIT["backbone"]), network=settings, kwargs=kwargs,
        image_size=size, **({"pretrained": False} | keys),
    )  # fmt: skip
    built, _ = build_network(model, some_classes(K))
    with torch.no_grad():
        for block in built.backbone.blocks:
            block.attn.qkv.weight.normal_(std=0.8)
        built.classifier.weight.normal_(std=0.3)
    return built


def slow_parts(network, images):
    """Chosen patches [N][heads], from whole float64 maps of all but the last block; a head whose
    first two differ by less than rounding is None."""
    backbone = network.backbone
    whole = backbone.blocks
    backbone.blocks = whole[:-1]
    try:
        row = slow_rollout(whole_maps(backbone, images))[:, :, 0, backbone.num_prefix_tokens :]
    finally:
        backbone.blocks = whole
    chosen = []
    for image in row:
        chosen.append([])
        for head in image:
            best = max(range(len(head)), key=lambda j, head=head: (head[j], -j))
            near = [j for j in range(len(head)) if j != best and head[best] - head[j] < 1e-6]
            chosen[-1].append(None if near else best)
    return chosen, row


def wide(network, grid, stride=3):
    """The same network for images that are not square."""
    size = tuple(4 + stride * (n - 1) for n in grid)
    overlap(network.backbone, stride, size)
    return size


@pytest.mark.parametrize("seed", range(110))
def test_chosen_patches_and_output_of_random_networks(seed):
    """Against a loop over images and heads; the last block then reads what the loop chose."""
    rng = np.random.default_rng(seed)
    registers, heads = int(rng.integers(0, 3)), int(rng.integers(1, 4))
    network = transfg(
        seed,
        kwargs={
            "num_heads": heads, "embed_dim": 8 * heads, "depth": int(rng.integers(2, 5)),
            "reg_tokens": registers, "qk_norm": bool(rng.integers(2)),
            "no_embed_class": bool(rng.integers(2)),
        },
    ).eval()  # fmt: skip
    height, width = wide(network, rng.integers(1, 6, 2).tolist())
    images = torch.randn(int(rng.integers(1, 4)), 3, height, width)
    chosen, row = slow_parts(network, images)
    columns = network.backbone.patch_embed.grid_size[1]
    evidence = network.evidence(images)
    boxes, features = evidence.boxes["tokens"], network(images).features
    np.testing.assert_allclose(evidence.maps["rollout"].flatten(1), row.mean(1), rtol=1e-3)
    assert sum(part is None for parts in chosen for part in parts) <= 1
    for n, parts in enumerate(chosen):
        for head, part in enumerate(parts):
            if part is not None:
                x, y = 3 * (part % columns), 3 * (part // columns)
                assert boxes[n, head].tolist() == [x, y, x + 4, y + 4]
        if None not in parts:
            torch.testing.assert_close(features[n], slow_features(network, images[n], parts))


def slow_features(network, image, parts):
    backbone = network.backbone
    with torch.no_grad():
        tokens = backbone._pos_embed(backbone.patch_embed(image[None]))
        for block in list(backbone.blocks)[:-1]:
            tokens = block(tokens)
        prefix = backbone.num_prefix_tokens
        read = [tokens[0, j] for j in range(prefix)] + [tokens[0, prefix + j] for j in parts]
        return backbone.norm(backbone.blocks[-1](torch.stack(read)[None]))[0, 0]


def test_of_equal_patches_the_first_is_chosen_by_every_head():
    """Queries and keys that do not depend on the patch make rows equal to the bit."""
    network = transfg(kwargs={"depth": 2}).eval()
    with torch.no_grad():
        network.backbone.blocks[0].attn.qkv.weight.zero_()
    images = torch.randn(2, 3, SIZE, SIZE)
    boxes = network.evidence(images).boxes["tokens"]
    assert (boxes == torch.tensor([0.0, 0, 4, 4])).all()  # twice: duplicates stay
    want = slow_features(network, images[0], [0, 0])
    torch.testing.assert_close(network(images).features[0], want)


@pytest.mark.parametrize("training", [True, False])
def test_under_autocast_the_row_is_of_what_the_network_rounded(training, monkeypatch):
    """float64 maps of its own bf16 queries and keys; what is made of them is not rounded."""
    network, seen = transfg().train(training), []

    def spy(looked):
        seen.append((looked, class_row(looked)))
        return seen[-1][1]

    monkeypatch.setattr("src.networks.transfg.class_row", spy)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        network(torch.randn(4, 3, SIZE, SIZE))
    (looked, row), *others = seen
    assert not others and all(t.dtype == torch.bfloat16 for pair in looked for t in pair)
    maps = [(q.double() @ k.double().mT / 8**0.5).softmax(3) for q, k in looked]
    want = slow_rollout(torch.stack(maps).numpy())[:, :, 0]
    assert row.dtype == torch.float32
    np.testing.assert_allclose(row, want, rtol=1e-4)


def test_queries_and_keys_are_computed_once():
    network, calls = transfg(kwargs={"depth": 4}), []
    for i, block in enumerate(network.backbone.blocks):
        block.attn.qkv.register_forward_hook(lambda *a, i=i: calls.append(i))
    images, labels = random_batch()
    for run in (
        lambda: network.loss(Batch(images, labels), F.cross_entropy, FIRST),
        lambda: network.eval()(images),
    ):
        calls.clear()
        run()
        assert calls == [0, 1, 2, 3]
    calls.clear()
    network.evidence(images)
    assert calls == [0, 1, 2]


def test_a_compiled_one_is_not_traced_again_for_what_a_pass_left():
    network, graphs = transfg(kwargs={"depth": 2}), []
    images, _ = random_batch()
    want = network(images).logits

    def traced(graph, inputs):
        graphs.append(graph)
        return graph.forward

    network.compile(backend=traced)
    assert torch.equal(network(images).logits, want)
    first = len(graphs)
    for _ in range(2):
        assert torch.equal(network(images).logits, want)
    assert first == len(graphs) <= 4  # the rollout is left out, and parts them


def test_gradients_reach_the_chosen_patches_through_the_last_block():
    network = transfg()
    images, labels = random_batch()
    terms, output = network.loss(Batch(images, labels), F.cross_entropy, FIRST)
    assert output.features.shape == (8, 16) and set(terms) == {"criterion", "contrast"}
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.backbone.parameters())


def test_no_map_is_kept_for_the_gradient():
    """What autograd saves: nothing of T x T, for any head or block."""
    network, shapes = transfg(kwargs={"depth": 6}), []
    images, labels = random_batch()

    def pack(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    def squares():
        return [s for s in shapes if len(s) >= 3 and s[-1] == s[-2] == 26]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network.loss(Batch(images, labels), F.cross_entropy, FIRST)
        assert shapes and not squares()
        for block in network.backbone.blocks:  # maps that are saved would be seen
            block.attn.fused_attn = False
        network.loss(Batch(images, labels), F.cross_entropy, FIRST)
    assert squares()


def slow_contrast(features, labels, margin):
    features = features.astype(np.float64)
    total = 0.0
    for i in range(len(labels)):
        for j in range(len(labels)):
            norms = np.linalg.norm(features[i]) * np.linalg.norm(features[j])
            cosine = features[i] @ features[j] / norms
            total += 1 - cosine if labels[i] == labels[j] else max(cosine - margin, 0)
    return total / len(labels) ** 2


@pytest.mark.parametrize("kind", ["any", "one class", "all different", "batch of one", "half"])
def test_contrast_against_a_double_loop(kind):
    rng = np.random.default_rng(0)
    for _ in range(100):
        b = 1 if kind == "batch of one" else int(rng.integers(2, 9))
        features = rng.normal(size=(b, 5)) + rng.normal() * (rng.random() < 0.5)
        features *= 10 ** rng.uniform(-2, 2, (b, 1))  # lengths do not matter
        labels = {"one class": np.zeros(b, int), "all different": np.arange(b)}.get(
            kind, rng.integers(0, 3, b)
        )
        margin = float(rng.uniform(-0.5, 0.9))
        given = torch.tensor(features, dtype=torch.float16 if kind == "half" else torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "half"):
            found = contrast(given, torch.tensor(labels), margin)
        want = slow_contrast(given.double().numpy(), labels, margin)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_the_contrast(double):
    features = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    assert torch.autograd.gradcheck(lambda f: contrast(f, labels, 0.1), features)


def test_the_loss_weighs_the_contrast_of_the_features_and_has_any_criterion():
    images, labels = random_batch()
    network = transfg(network={"contrast": 0.25, "margin": 0.1}).eval()
    terms, output = network.loss(Batch(images, labels), lambda z, y: z.mean(), FIRST)
    want = slow_contrast(output.features.detach().numpy(), labels.numpy(), 0.1)
    assert terms["contrast"].item() == pytest.approx(0.25 * want, rel=1e-4)
    assert terms["criterion"].item() == pytest.approx(output.logits.mean().item())
    torch.testing.assert_close(output.logits, network.classifier(output.features))


# ---- overlapping patches ------------------------------------------------------------------------


def test_patches_overlap_and_their_embedding_is_resampled():
    """The published grid: 37 x 37 at 448, stride 12."""
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, embed_dim=6, depth=2).eval()
    before = vit.pos_embed.detach().clone()
    overlap(vit, 12, (448, 448))
    assert vit.patch_embed.grid_size == (37, 37) and vit.pos_embed.shape == (1, 1370, 6)
    torch.testing.assert_close(vit.pos_embed[:, :1], before[:, :1])
    want = resample_abs_pos_embed(before, [37, 37], [14, 14], num_prefix_tokens=1)
    torch.testing.assert_close(vit.pos_embed, want)
    image = torch.randn(1, 3, 448, 448)
    patches = vit.patch_embed(image)
    assert patches.shape == (1, 1369, 6)
    own = image[..., 12 * 3 : 12 * 3 + 16, 12 * 5 : 12 * 5 + 16]
    want = (vit.patch_embed.proj.weight * own).sum((1, 2, 3)) + vit.patch_embed.proj.bias
    torch.testing.assert_close(patches[0, 3 * 37 + 5], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"pos_embed": "none"},
        {"dynamic_img_size": True},
        {"dynamic_img_size": True, "dynamic_img_pad": True},
    ],
)
def test_every_kind_of_embedding_gives_the_same_grid(kwargs):
    """Also where timm would pad 13 pixels to 16, and takes 20 of any grid."""
    network = transfg(size=13, kwargs=kwargs).eval()
    hidden, row = network._looked(torch.randn(2, 3, 13, 13))
    assert hidden.shape == (2, 17, 16) and row.shape == (2, 2, 16)
    with pytest.raises(UserError, match="does not take images of 20 x 20"):
        check_image_size(network, Model(**VIT, image_size=20))


def test_a_distilled_transformer_predicts_from_both_of_its_tokens():
    network = transfg(backbone="deit_tiny_distilled_patch16_224").eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    hidden, row = network._looked(images)
    parts = hidden.gather(1, (2 + row.argmax(2))[..., None].expand(-1, -1, 16))
    last = network.backbone.blocks[-1](torch.cat([hidden[:, :2], parts], 1))
    want = network.backbone.norm(last)[:, :2].mean(1)
    torch.testing.assert_close(network(images).features, want)


@pytest.mark.parametrize(
    "size, stride, words",
    [
        (447, 12, "image_size=447: .* multiple of model.network.stride=12, .* 436 or 448"),
        (17, 12, "to 16 or 28"),
        (10, 12, "to 16"),
        (448, 17, "stride=17: patches of 16 pixels would leave gaps"),
    ],
)
def test_patches_that_leave_pixels_out_are_refused(size, stride, words):
    with pytest.raises(UserError, match=words):
        transfg(size=size, network={"stride": stride}, kwargs={"patch_size": 16})
    for near in (16, 28, 436, 448):
        assert (near - 16) % 12 == 0


@pytest.mark.parametrize(
    "backbone, kwargs, words",
    [
        ("resnet18", {}, "ResNet is none of timm's VisionTransformer"),
        ("cifar_resnet20", {}, "CifarResNet is none of"),
        ("vit_base_patch16_gap_224", {}, "no class token"),
        ("vit_small_patch16_224", {"global_pool": "avg"}, "global_pool=token"),
        ("vit_small_patch16_224", {"depth": 1}, "one block"),
        ("vit_small_r26_s32_224", {}, "made by HybridEmbed"),
    ],
)
@pytest.mark.parametrize("pretrained", [True, "weights.pt"])
def test_other_backbones_are_refused_before_weights_are_fetched(
    backbone, kwargs, words, pretrained, monkeypatch
):
    create = timm.create_model

    def offline(name, pretrained=False, **keys):
        assert not pretrained, "weights were fetched"
        return create(name, **keys)

    monkeypatch.setattr(timm, "create_model", offline)
    model = Model(backbone=backbone, kwargs=kwargs, network="transfg", pretrained=pretrained)
    with pytest.raises(UserError, match=f"model.backbone={backbone}: .*{words}"):
        build_network(model, some_classes(K), pretrained=pretrained is True)


@pytest.mark.parametrize(
    "model, train, words",
    [
        ({}, {"mixing": {"mixup": 1.0}}, "a mixed image has two"),
        ({}, {"mixing": {"manifold": 1.0}}, "a mixed image has two"),
        ({}, {"second_sampler": "reversed"}, "second_sampler is used by"),
        ({"kwargs": {"img_size": 448}}, {}, "img_size"),
        ({"network": {"name": "transfg", "last_block": "random"}}, {}, "every block starts random"),
        ({"network": {"name": "transfg", "stride": 0}}, {}, "stride"),
        ({"network": {"name": "transfg", "margin": 1.0}}, {}, "margin"),
    ],
)
def test_config_refuses_what_makes_no_sense(model, train, words):
    with pytest.raises(UserError, match=words):
        tiny_config(TINY | model, train)


# ---- warm starts ---------------------------------------------------------------------------------


def plain_vit():
    """What an earlier training left: the same transformer with a grid of 6 x 6."""
    return timm.create_model(VIT["backbone"], num_classes=0, img_size=24, **VIT["kwargs"])


def block_of(state, block):
    return {k: v for k, v in state.items() if k.startswith(f"backbone.blocks.{block}.")}


@pytest.mark.parametrize("last_block", ["pretrained", "random"])
def test_a_file_of_vit_weights_of_another_grid(last_block, tmp_path):
    vit = plain_vit()
    torch.save(vit.state_dict(), tmp_path / "weights.pt")
    network = {"name": "transfg", "stride": 3, "last_block": last_block}
    keys = TINY | {"network": network, "pretrained": str(tmp_path / "weights.pt")}
    model = Model(**keys, image_size=SIZE)
    built, _ = build_network(model, some_classes(K))
    fresh = {k: v.clone() for k, v in built.state_dict().items()}
    said = str(load_pretrained(built, model, "tiny", "fold0"))
    assert ("blocks.2" in said) == (last_block == "random")
    found = built.state_dict()
    want = resample_abs_pos_embed(vit.pos_embed, [5, 5], [6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(found["backbone.pos_embed"], want)
    source = {f"backbone.{key}": tensor for key, tensor in vit.state_dict().items()}
    for block, origin in enumerate([source, source, source]):
        if block == 2 and last_block == "random":
            origin = fresh
        for key, tensor in block_of(origin, block).items():
            torch.testing.assert_close(found[key], tensor)
    torch.testing.assert_close(found["backbone.norm.weight"], vit.norm.weight)


def test_weights_of_the_hub_keep_or_lose_their_last_block(monkeypatch):
    """With weights that timm hands over inside the backbone."""
    create = timm.create_model

    def from_hub(name, pretrained=False, **keys):
        vit = create(name, **keys)
        if pretrained:
            with torch.no_grad():
                for p in vit.parameters():
                    p.fill_(0.125)
        return vit

    monkeypatch.setattr(timm, "create_model", from_hub)
    for last_block in ("pretrained", "random"):
        network = {"name": "transfg", "stride": 3, "last_block": last_block}
        model = Model(**TINY | {"network": network}, image_size=SIZE)
        built, _ = build_network(model, some_classes(K), pretrained=True)
        blocks = built.backbone.blocks
        assert all((p == 0.125).all() for p in blocks[1].parameters())
        torch.testing.assert_close(built.backbone.pos_embed, torch.full((1, 26, 16), 0.125))
        kept = all((p == 0.125).all() for p in blocks[2].parameters())
        assert kept == (last_block == "pretrained")
        if not kept:
            assert (blocks[2].norm1.weight == 1).all() and not blocks[2].mlp.fc1.bias.any()
            assert blocks[2].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_warm_start_from_a_plain_transformer_and_from_one_like_this(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    kwargs = VIT["kwargs"] | {"img_size": SIZE}  # a grid of 4 x 4
    train_tiny(tiny_config(VIT | {"kwargs": kwargs}, {"epochs": 2}), "plain")
    for last_block, source in (("pretrained", "plain"), ("random", "transfg")):
        network = TINY["network"] | {"last_block": last_block}
        config = tiny_config(
            TINY | {"network": network, "pretrained": f"experiment:{source}"}, {"epochs": 2}
        )
        built, _ = build_network(config.model, some_classes(K))
        said = str(load_pretrained(built, config.model, "tiny", "fold0"))
        assert ("left new" in said) == (last_block == "random"), said
        where = tmp_path / "runs/tiny" / source / "stage1/fold0/weights.safetensors"
        own, found = load_network(where, data)[0].state_dict(), built.state_dict()
        for key, tensor in found.items():
            if key == "backbone.pos_embed" and source == "plain":
                want = resample_abs_pos_embed(own[key], [5, 5], [4, 4], num_prefix_tokens=1)
                torch.testing.assert_close(tensor, want)
            elif last_block == "random" and key.endswith("blocks.2.attn.qkv.weight"):
                assert not torch.equal(tensor, own[key])
            elif last_block == "pretrained" or ".blocks.2." not in key:
                torch.testing.assert_close(tensor, own[key])
        if source == "plain":
            train_tiny(config, "transfg")


def test_a_partly_frozen_one_is_read_again(tmp_path, monkeypatch):
    """Files leave out what its source gives back: the resampled position embedding, too."""
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    vit = plain_vit()
    torch.save(vit.state_dict(), tmp_path / "weights.pt")
    network = TINY["network"] | {"last_block": "random"}
    config = tiny_config(
        TINY | {"network": network, "pretrained": "weights.pt"},
        {"epochs": 1, "warmup_epochs": 0, "freeze": ["backbone.*"]},
    )
    directory = train_tiny(config, "frozen")
    built, _ = load_network(directory / "weights.safetensors", data)
    with safe_open(directory / "weights.safetensors", "pt") as file:
        saved = set(file.keys())
    assert "backbone.blocks.2.attn.qkv.weight" in saved  # random, so from nowhere else
    assert not saved & {"backbone.pos_embed", "backbone.blocks.1.attn.qkv.weight"}
    assert torch.equal(built.backbone.blocks[1].mlp.fc1.weight, vit.blocks[1].mlp.fc1.weight)
    want = resample_abs_pos_embed(vit.pos_embed, [5, 5], [6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(built.backbone.pos_embed, want)


@pytest.mark.parametrize(
    "model, train",
    [
        (
            {"head": "cosine", "dropout": 0.1, "drop_path": 0.2},
            {"ema": 0.9, "micro_batch": 4, "auxiliaries": [{"name": "frequency"}],
             "criterion": {"name": "balanced_softmax"}},
        ),
        (
            {"neck": {"width": 8}},
            {"precision": "bf16", "layer_decay": 0.7, "optimizer": "adamw", "lr": 1e-3},
        ),
    ],
    ids=["accumulated", "bf16"],
)  # fmt: skip
def test_a_killed_run_writes_the_same_bytes(model, train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    whole = resumes_exactly(tiny_config(TINY | model, train), monkeypatch)
    header = (whole / "metrics.csv").read_text().splitlines()[0]
    assert "loss_criterion" in header and "loss_contrast" in header
