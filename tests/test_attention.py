"""Attention rollout's class row against a float64 loop over images and heads that multiplies whole
maps, and the memory that it takes."""

import weakref
from collections import Counter
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import src.networks.attention as attention
from src.networks.attention import class_rollout, class_row, embedded, no_rollout


def tiny_vit(grid=(3, 3), heads=2, depth=3, seed=0, **keys):
    """A random ViT of 8-pixel patches whose attention is far from uniform."""
    torch.manual_seed(seed)
    size = (8 * grid[0], 8 * grid[1])
    keys = {"embed_dim": 8 * heads, "num_heads": heads, "depth": depth, "mlp_ratio": 2} | keys
    vit = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=size, patch_size=8, **keys
    ).eval()
    with torch.no_grad():
        vit.cls_token.normal_()
        for block in vit.blocks:
            block.attn.qkv.weight.normal_(std=0.8)
            block.attn.qkv.bias.normal_(std=0.5)
    return vit


def softmax(scores):
    rises = np.exp(scores - scores.max())
    return rises / rises.sum()


def whole_maps(vit, images):
    """[L, N, heads, T, T] in float64, by rows, from what a float64 copy feeds its attention."""
    vit, fed = deepcopy(vit).double(), []
    for block in vit.blocks:
        block.attn.register_forward_pre_hook(lambda module, args: fed.append(args[0]))
    with torch.no_grad():
        vit(images.double())
    maps = []
    for block, inputs in zip(vit.blocks, fed, strict=True):
        attn, heads = block.attn, block.attn.num_heads
        with torch.no_grad():
            q, k, _ = attn.qkv(inputs).chunk(3, 2)  # [N, T, D]
            split = [t.unflatten(2, (heads, -1)) for t in (q, k)]
            q, k = attn.q_norm(split[0]).numpy(), attn.k_norm(split[1]).numpy()
        n, tokens, _, d = q.shape
        found = np.zeros((n, heads, tokens, tokens))
        for image in range(n):
            for head in range(heads):
                for row in range(tokens):
                    scores = [q[image, row, head] @ k[image, j, head] for j in range(tokens)]
                    found[image, head, row] = softmax(np.array(scores) / np.sqrt(d))
        maps.append(found)
    return np.stack(maps)


def slow_rollout(maps):
    """R = A_L … A_1 as whole matrices: [N, heads, T, T]."""
    found = np.zeros(maps.shape[1:])
    for image in range(maps.shape[1]):
        for head in range(maps.shape[2]):
            product = np.eye(maps.shape[3])
            for layer in range(len(maps)):
                product = maps[layer, image, head] @ product
            found[image, head] = product
    return found


@pytest.mark.parametrize("seed", range(120))
def test_class_row_of_random_transformers(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    grid = tuple(int(n) for n in rng.integers(1, 5, 2))
    registers = int(rng.integers(0, 3))
    vit = tiny_vit(
        grid, heads=int(rng.integers(1, 4)), depth=int(rng.integers(1, 5)), seed=seed,
        reg_tokens=registers, qk_norm=bool(rng.integers(2)), no_embed_class=bool(rng.integers(2)),
        pre_norm=bool(rng.integers(2)),
    )  # fmt: skip
    monkeypatch.setattr(attention, "ROWS", int(rng.integers(1, 8)))
    images = torch.randn(int(rng.integers(1, 4)), 3, 8 * grid[0], 8 * grid[1])
    want = slow_rollout(whole_maps(vit, images))[:, :, 0, 1 + registers :]
    found = class_rollout(vit, images)
    assert found.shape == want.shape and found.dtype == torch.float32
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-6)


def test_the_row_with_prefix_sums_to_one_and_heads_differ():
    vit, images = tiny_vit((3, 4), heads=3, reg_tokens=2), torch.randn(2, 3, 24, 32)
    entered = [embedded(vit, images)]
    for block in vit.blocks[:-1]:
        entered.append(block(entered[-1]))
    row = class_row(vit.blocks, entered)
    torch.testing.assert_close(row.sum(2), torch.ones(2, 3))
    torch.testing.assert_close(row[..., 3:], class_rollout(vit, images))
    assert (row[:, 0] - row[:, 1]).abs().max() > 0.01 and not row.requires_grad


def test_float64_agrees_to_the_last_digits():
    vit, images = tiny_vit(depth=4).double(), torch.randn(2, 3, 24, 24, dtype=torch.float64)
    want = slow_rollout(whole_maps(vit, images))[:, :, 0, 1:]
    np.testing.assert_allclose(class_rollout(vit, images), want, rtol=1e-12)


def test_autocast_does_not_touch_what_is_made_of_the_tokens():
    vit = tiny_vit((4, 4))
    entered = [torch.randn(2, 17, 16) for _ in vit.blocks]
    plain = class_row(vit.blocks, entered)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(class_row(vit.blocks, entered), plain)
    rounded = [t.bfloat16() for t in entered]  # as a stream without position embedding would be
    assert class_row(vit.blocks, rounded).dtype == torch.float32


def test_embedding_is_what_timm_feeds_its_blocks():
    vit, images = tiny_vit((2, 5), reg_tokens=1, pre_norm=True), torch.randn(2, 3, 16, 40)
    with torch.no_grad():
        found = vit.norm(vit.blocks(embedded(vit, images)))
        torch.testing.assert_close(found, vit.forward_features(images))


@contextmanager
def counted_maps(tokens):
    """Counts values, at most alive at once, of tensors ending in [more than T / 2, T]: of maps."""

    class Count(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            for made in found if isinstance(found, tuple | list) else [found]:
                if isinstance(made, torch.Tensor) and made.ndim >= 3:
                    if made.shape[-1] == tokens and made.shape[-2] > tokens // 2:
                        self.keep(made)
            return found

        def keep(self, made):
            storage = made.untyped_storage().data_ptr(), made.numel()  # views share one
            views[storage] += 1
            weakref.finalize(made, views.subtract, [storage])
            self.most = max(self.most, sum(size for (_, size), n in views.items() if n > 0))

    views = Counter()
    with Count() as count:
        yield count


def test_one_map_is_alive_at_a_time_however_many_blocks():
    """A stack of all maps, as the formula reads, is what the count would see."""
    heads, tokens, n = 3, 37, 2
    for depth in (2, 12):
        vit = tiny_vit((6, 6), heads=heads, depth=depth)
        entered = [torch.randn(n, tokens, 24) for _ in vit.blocks]
        one = n * heads * tokens * tokens
        with torch.no_grad(), counted_maps(tokens) as kept:
            maps = []
            for block, t in zip(vit.blocks, entered, strict=True):
                q, k = attention._queries_keys(block, t)
                maps.append((q @ k.transpose(2, 3)).softmax(3))
            del q, k
        assert kept.most >= depth * one
        del maps
        with counted_maps(tokens) as count:
            class_row(vit.blocks, entered)
        assert one <= count.most <= 2 * one, (depth, count.most / one)  # scores and their softmax


def test_a_map_is_made_in_parts(monkeypatch):
    vit, entered = tiny_vit((6, 6)), [torch.randn(2, 37, 16) for _ in range(3)]
    monkeypatch.setattr(attention, "ROWS", 8)
    with counted_maps(37) as count:
        class_row(vit.blocks, entered)
    assert count.most == 0


@pytest.mark.parametrize(
    "name, words",
    [
        ("resnet18", "ResNet is none of"),
        ("eva02_tiny_patch14_224", "Eva is none of"),
        ("vit_base_patch16_gap_224", "no class token"),
        ("vit_small_patch16_18x2_224", "ParallelThingsBlock"),
    ],
)
def test_backbones_without_a_class_row_say_why(name, words):
    with torch.device("meta"):
        backbone = timm.create_model(name, num_classes=0)
    assert words in no_rollout(backbone)


def test_blocks_of_another_make_are_named():
    vit = timm.create_model("test_vit", num_classes=0, attn_layer="diff")
    assert "DiffAttention" in no_rollout(vit)
    assert no_rollout(tiny_vit(reg_tokens=2)) is None
