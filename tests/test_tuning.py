"""Parameter-efficient tuning against slow references, on tiny bodies of every family."""

import copy
from functools import partial
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from torch import nn

from src.config.read import parse_config
from src.config.tuning import LoRA
from src.errors import UserError
from src.networks.build import build_network
from src.networks.evidence import maps_of
from src.networks.guest import Guest
from src.networks.tuning import added, tune
from src.networks.tuning.adaptformer import default_bottleneck
from src.networks.tuning.lora import merged
from tests.fabricate import some_classes
from tests.training_kit import tiny_config

SMALL = {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 16}
BODIES = {
    "augreg": "vit_tiny_patch16_224",
    "dinov2": "vit_small_patch14_reg4_dinov2",
    "dinov3": "vit_small_patch16_dinov3",
    "siglip": "vit_base_patch16_siglip_224",
    "clip": "vit_base_patch16_clip_quickgelu_224",
    "eva02": "eva02_tiny_patch14_224",
    "gap": "vit_base_patch16_gap_224",
}
METHODS = {
    "adaptformer": {"name": "adaptformer", "bottleneck": 4},
    "lora": {"name": "lora", "rank": 3, "alpha": 6},
    "shallow": {"name": "prompts", "number": 2, "deep": False},
    "deep": {"name": "prompts", "number": 2},
    "bias": "bias",
    "last_blocks": "last_blocks",
    "layer_norm": "layer_norm",
}


def section(method: str, **more):
    value = METHODS[method]
    value = ({"name": value} if isinstance(value, str) else value) | more
    return tiny_config({"tuning": value, "backbone": "vit_tiny_patch16_224"}).model.tuning


def body(family: str) -> nn.Module:
    """In float64, with weights that are not those of a start: norms, biases and layer scales of all
    sizes."""
    torch.manual_seed(0)
    if family == "open_clip":
        open_clip = pytest.importorskip("open_clip", reason="of requirements-text.txt")
        found = open_clip.transformer.VisionTransformer(16, 4, 32, 3, 2, 4.0, output_dim=24)
    else:
        found = timm.create_model(BODIES[family], num_classes=0, **SMALL)
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.3)
    return found.double().eval()


def trunk_of(method: str) -> tuple[nn.Module, nn.Module]:
    """A tower of open_clip that holds a model of timm's, and the same without tuning."""
    module = pytest.importorskip("open_clip.timm_model", reason="of requirements-text.txt")
    torch.manual_seed(0)
    with mock.patch.object(timm, "create_model", partial(timm.create_model, **SMALL)):
        tower = module.TimmModel("vit_tiny_patch16_224", 24, 16, pool="token", proj="linear")
    plain = copy.deepcopy(tower).eval()
    tune(section(method), tower, some_classes(6))
    return tower.eval(), plain


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=seeded())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def moved(backbone: nn.Module) -> nn.Module:
    """What training changes, changed."""
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3, generator=seeded())
    return backbone.double()


def tuned(family: str, method: str, **more) -> nn.Module:
    backbone = body(family)
    tune(section(method, **more), backbone, some_classes(6))
    return backbone.double().eval()


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    inner = getattr(backbone, "transformer", None)
    return list(inner.resblocks if inner is not None else backbone.blocks)


EVERY = [*BODIES, "open_clip"]
ALL_LINEAR = {"dinov3": ("qkv", "fc2"), "open_clip": ("attn", "mlp.c_fc")}


# ---- what each computes ------------------------------------------------------------------------


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("method", ["adaptformer", "lora", "bias", "last_blocks", "layer_norm"])
def test_training_begins_with_the_body_as_it_was(family, method):
    x = images()
    torch.testing.assert_close(tuned(family, method)(x), body(family)(x))


@pytest.mark.parametrize("family", EVERY)
def test_adaptformer_is_what_its_formula_says(family):
    """Written anew for one block: the FFN's input is what its norm sees."""
    backbone = moved(tuned(family, "adaptformer"))
    plain, block = body(family), blocks_of(backbone)[1]
    before = {}
    for one in (blocks_of(plain)[1], block):
        norm = one.norm2 if hasattr(one, "norm2") else one.ln_2
        norm.register_forward_hook(lambda m, i, o, one=one: before.setdefault(id(one), i[0]))
    tokens = torch.randn(2, 5 if family == "open_clip" else 6, 32, dtype=torch.float64)
    kwargs = {} if not hasattr(backbone, "rope") else {"rope": None}
    found, without = block(tokens, **kwargs), blocks_of(plain)[1](tokens, **kwargs)
    x, own = before[id(block)], block.adapter
    torch.testing.assert_close(x, before[id(blocks_of(plain)[1])])
    x = x.detach().numpy()
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    weights = {k: v.detach().numpy() for k, v in own.state_dict().items()}
    normed = normed * weights["norm.weight"] + weights["norm.bias"]
    hidden = np.maximum(normed @ weights["down.weight"].T + weights["down.bias"], 0)
    beside = weights["scale"] * (hidden @ weights["up.weight"].T + weights["up.bias"])
    assert np.abs(beside).max() > 0.1 and hidden.shape[-1] == 4
    np.testing.assert_allclose((found - without).detach().numpy(), beside, atol=1e-10)


@pytest.mark.parametrize(
    "classes, blocks, r", [(100, 12, 4), (365, 12, 8), (1000, 12, 32), (8142, 12, 256), (2, 12, 1)]
)
def test_the_bottleneck_is_that_of_lift(classes, blocks, r):
    assert default_bottleneck(classes, blocks) == r


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("targets", [None, "some"])
def test_lora_is_one_matrix(family, targets):
    """Merged and unmerged give the same, and what is merged is W + α/r B A."""
    chosen = None if targets is None else ALL_LINEAR.get(family, ("attn.qkv", "mlp.fc1"))
    backbone = moved(tuned(family, "lora", targets=chosen))
    settings = LoRA(rank=3, alpha=6, targets=chosen)
    plain, state = body(family), backbone.state_dict()
    found = merged(state, settings)
    assert found.keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        layer = name.rpartition(".")[0]
        expected = tensor
        if f"{layer}.lora.a" in state and tensor.ndim == 2:
            a, b = state[f"{layer}.lora.a"], state[f"{layer}.lora.b"]
            expected = tensor + 2 * torch.einsum("or,ri->oi", b, a)
            assert (expected - tensor).abs().max() > 0.1
        torch.testing.assert_close(found[name], expected)
    plain.load_state_dict(found)
    x = images()
    torch.testing.assert_close(plain(x), backbone(x))
    assert (plain(x) - body(family)(x)).abs().max() > 1e-3


def test_lora_is_what_peft_makes_of_it():
    peft = pytest.importorskip("peft", reason="of requirements-text.txt")
    backbone, other = moved(tuned("augreg", "lora")), body("augreg")
    wanted = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["attn.qkv", "attn.proj"])
    peft.inject_adapter_in_model(wanted, other)
    names = {"lora.a": "lora_A.default.weight", "lora.b": "lora_B.default.weight"}
    state = {}
    for key, tensor in backbone.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        state[key] = tensor
    theirs = {key: state[key.replace(".base_layer", "")] for key in other.state_dict()}
    assert len(theirs) == len(state)
    other.load_state_dict(theirs)
    x = images()
    torch.testing.assert_close(other.double().eval()(x), backbone(x))


@pytest.mark.parametrize("family", ["augreg", "dinov3", "siglip", "open_clip"])
@pytest.mark.parametrize("method", ["shallow", "deep"])
def test_prompts_stand_after_the_prefix_and_are_gone_after_the_last_block(family, method):
    """Block by block, by hand: what enters, what is kept, what is taken out."""
    backbone, plain = moved(tuned(family, method)), body(family)
    entered, left = [], []
    for block in blocks_of(backbone):
        first = block.norm1 if hasattr(block, "norm1") else block.ln_1
        first.register_forward_hook(lambda m, i, o: entered.append(i[0]))
        block.register_forward_hook(lambda m, i, o: left.append(o))
    start = {"augreg": 1, "dinov3": 5, "siglip": 0, "open_clip": 1}[family]
    first = []
    handle = blocks_of(plain)[0].register_forward_pre_hook(
        lambda m, i, k: first.append((i[0], k)), with_kwargs=True
    )
    plain(images())
    handle.remove()
    tokens, kwargs = first[0]
    for block in blocks_of(plain) if family == "dinov3" else ():
        block.attn.num_prefix_tokens += 2  # no rotation of prompts
    own = [getattr(block, "prompts", None) for block in blocks_of(backbone)]
    assert [p is not None for p in own] == [True] + 2 * [method == "deep"]
    for prompts, block in zip(own, blocks_of(plain), strict=True):
        if prompts is not None:
            rows = prompts.detach().expand(len(tokens), -1, -1)
            rest = tokens[:, start:] if method == "deep" or block is blocks_of(plain)[0] else None
            tokens = torch.cat([tokens[:, :start], rows, rest], 1)
        tokens = block(tokens, **kwargs)
        if method == "deep" or block is blocks_of(plain)[-1]:
            kept = [i for i in range(tokens.shape[1]) if i not in (start, start + 1)]
            tokens = tokens[:, kept]
    backbone(images())
    torch.testing.assert_close(left[-1], tokens)
    assert all(x.shape[1] == entered[0].shape[1] for x in entered)
    torch.testing.assert_close(entered[0][:, start : start + 2], own[0].expand(3, -1, -1))
    assert left[-1].shape[1] == entered[0].shape[1] - 2


# ---- what trains -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("method", METHODS)
def test_what_it_says_trains_and_all_of_that_gets_a_gradient(family, method):
    backbone = moved(tuned(family, method)).train()
    names = {name for name, p in backbone.named_parameters() if p.requires_grad}
    if method in ("adaptformer", "lora", "shallow", "deep"):
        assert names == {name for name in backbone.state_dict() if added(name)} != set()
    elif method == "bias":
        assert all(name.endswith("bias") for name in names) and len(names) > 10
    elif method == "layer_norm":
        assert all("norm" in name or "ln_" in name for name in names) and len(names) >= 12
    else:
        assert any(".2." in n for n in names) and not any(".0." in n or ".1." in n for n in names)
        assert any(n.startswith(("norm", "fc_norm", "ln_post")) for n in names)
    found = backbone(images())
    found.square().sum().backward()
    for name, p in backbone.named_parameters():
        assert (p.grad is not None and p.grad.any()) == (name in names) or _unused(name), name


def _unused(name: str) -> bool:
    """A bias of keys changes no attention; open_clip's projection comes after what is pooled."""
    return name.endswith(("in_proj_bias", "latent")) or name == "proj"


@pytest.mark.parametrize("method", METHODS)
def test_towers_of_open_clip_with_a_model_of_timms_are_tuned(method):
    tower, plain = trunk_of(method)
    x = images().float()
    same = (tower(x) - plain(x)).abs().max() < 1e-5
    assert same == (method not in ("shallow", "deep"))
    trained = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith(("trunk.", "head.")) for name in trained)
    assert method != "last_blocks" or {n for n in trained if "blocks.0" in n} == set()


@pytest.mark.parametrize("method", ["adaptformer", "lora", "deep"])
def test_a_copy_of_a_network_has_its_own_additions(method):
    first = moved(tuned("augreg", method))
    second = copy.deepcopy(first)
    x = images()
    before = first(x)
    for name, parameter in second.named_parameters():
        if added(name):
            nn.init.normal_(parameter, std=1.0)
    assert (second(x) - before).abs().max() > 1e-3
    torch.testing.assert_close(first(x), before)


@pytest.mark.parametrize("family", ["augreg", "dinov3", "open_clip"])
def test_a_frozen_prefix_keeps_no_graph(family):
    """Nothing is saved for a backward pass before the first block that trains."""
    backbone = tuned(family, "last_blocks").float().train()
    entered, saved = [], []
    blocks = blocks_of(backbone)
    for block in blocks:
        block.register_forward_pre_hook(lambda m, i: entered.append((i[0], len(saved))))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        backbone(images().float())
    assert [x.grad_fn is None for x, _ in entered] == [True, True, True]
    assert [count for _, count in entered] == [0, 0, 0] and len(saved) > 5


@pytest.mark.parametrize("family", ["augreg", "dinov3", "siglip"])
@pytest.mark.parametrize("method", ["adaptformer", "lora", "shallow", "deep"])
def test_a_guest_goes_along_and_changes_nothing(family, method):
    """The semantic CLS token of src/networks/guest.py: added, and taken out, around what is added
    here."""
    backbone = moved(tuned(family, method))
    expected, guest = backbone(images()), Guest(backbone)
    with guest.visits(torch.randn(3, 32, dtype=torch.float64)):
        found = backbone(images())
        left = guest.left()
    torch.testing.assert_close(found, expected)
    assert left.shape == (3, 32) and left.isfinite().all()


# ---- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backbone, value, says",
    [
        ("cifar_resnet20", "prompts", "prompts works in the blocks of a vision transformer"),
        ("resnet18", "adaptformer", "and ResNet has none of these; its stages are Sequential"),
        ("resnet18", "lora", "Choose a model.backbone such as vit_base_patch16_224"),
        ("resnet18", "layer_norm", "ResNet has no layer norm but batch norm"),
        ("resnet18", "bias", "has batch norm, whose statistics would move"),
        ("resnet18", {"name": "last_blocks", "blocks": 5}, "blocks=5: ResNet has 4 blocks or st"),
        (
            "vit_tiny_patch16_224",
            {"name": "lora", "targets": ["qkv", "query"]},
            "no layer matches 'query'; in a block of this backbone there are attn.qkv, attn.proj, "
            "mlp.fc1, mlp.fc2",
        ),
    ],
)
def test_a_body_that_it_can_do_nothing_with_is_refused(backbone, value, says):
    kwargs = {"depth": 2, "embed_dim": 32, "num_heads": 2} if "vit" in backbone else {}
    model = {"backbone": backbone, "tuning": value, "kwargs": kwargs}
    config = parse_config({"model": model | {"pretrained": True}})  # before weights are fetched
    with pytest.raises(UserError) as error:
        build_network(config.model, some_classes(6), pretrained=True)
    assert says in str(error.value)


@pytest.mark.parametrize("family", ["eva02", "open_clip"])
def test_inputs_of_a_matrix_that_no_layer_calls_cannot_be_dropped(family):
    with pytest.raises(UserError, match="in which no input can be dropped; set it to 0"):
        tuned(family, "lora", dropout=0.1)
    tuned(family, "lora", dropout=0.1, targets=["mlp.c_fc" if family == "open_clip" else "fc1"])


@pytest.mark.parametrize(
    "model, says",
    [
        ({"network": "ride", "tuning": "bias"}, "bias does not go with model.network=ride: its ex"),
        ({"network": "transfg", "tuning": "prompts"}, "it chooses patches by their places"),
        ({"tuning": "adapter"}, "did you mean 'adaptformer'?"),
        ({"tuning": {"name": "lora", "rnk": 4}}, "did you mean `rank`?"),
    ],
)
def test_choices_that_make_no_sense_are_refused(model, says):
    with pytest.raises(UserError) as error:
        parse_config({"model": {"backbone": "vit_tiny_patch16_224"} | model})
    assert says in str(error.value)


def test_evidence_leaves_out_what_prompts_would_shift():
    model = {"backbone": "vit_tiny_patch16_224", "kwargs": SMALL, "tuning": "prompts"}
    network, _ = build_network(tiny_config(model).model, some_classes(6))
    assert maps_of(network.eval(), images().float()) == {}
    model["tuning"] = "adaptformer"
    network, _ = build_network(tiny_config(model).model, some_classes(6))
    assert maps_of(network.eval(), images().float())["rollout"].shape == (3, 4, 4)
