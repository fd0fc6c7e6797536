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
from src.networks.attention import class_rollout, class_row, embedded, no_rollout, taken, watch


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
    monkeypatch.setattr(attention, "_cores", lambda k: seed % 5)  # 0: as on a GPU
    images = torch.randn(int(rng.integers(1, 4)), 3, 8 * grid[0], 8 * grid[1])
    want = slow_rollout(whole_maps(vit, images))[:, :, 0, 1 + registers :]
    found = class_rollout(vit, images)
    assert found.shape == want.shape and found.dtype == torch.float32
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-6)


def test_the_row_with_prefix_sums_to_one_and_heads_differ():
    vit, images = tiny_vit((3, 4), heads=3, reg_tokens=2), torch.randn(2, 3, 24, 32)
    watch(vit.blocks)
    vit(images)
    row = class_row([taken(block) for block in vit.blocks])
    torch.testing.assert_close(row.sum(2), torch.ones(2, 3))
    torch.testing.assert_close(row[..., 3:], class_rollout(vit, images))
    assert (row[:, 0] - row[:, 1]).abs().max() > 0.01 and not row.requires_grad


def test_float64_agrees_to_the_last_digits():
    vit, images = tiny_vit(depth=4).double(), torch.randn(2, 3, 24, 24, dtype=torch.float64)
    want = slow_rollout(whole_maps(vit, images))[:, :, 0, 1:]
    np.testing.assert_allclose(class_rollout(vit, images), want, rtol=1e-12)


def looks(depth, tokens, heads=2, n=2, d=8):
    """Random q and k of `depth` blocks."""
    return [tuple(torch.randn(2, n, heads, tokens, d)) for _ in range(depth)]


def test_the_row_is_made_in_float32_of_what_the_network_rounded():
    """Autocast changes nothing after that."""
    looked = looks(3, 17)
    rounded = [(q.bfloat16(), k.bfloat16()) for q, k in looked]
    wide = class_row([(q.float(), k.float()) for q, k in rounded])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(class_row(rounded), wide) and wide.dtype == torch.float32
        assert torch.equal(class_row(looked), row := class_row(looked))
    assert torch.equal(class_row(looked), row) and not torch.equal(row, wide)


@contextmanager
def shifts(monkeypatch):
    """Which maps were made, with or without the maximum taken away."""
    asked, mix = [], attention._mix

    def spy(*args, shift):
        asked.append(shift)
        return mix(*args, shift=shift)

    with monkeypatch.context() as patch:
        patch.setattr(attention, "_mix", spy)
        yield asked


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize(
    "size, common, large",
    [(0.1, 0, False), (2, 0, False), (0.5, 80, True), (30, 0, True)],
)
def test_scores_of_any_size(size, common, large, cores, monkeypatch):
    """Up to thousands: where exp overflows, and where what keys have in common makes all vanish."""
    monkeypatch.setattr(attention, "_cores", lambda k: cores)
    looked = [(size * q, size * k + common) for q, k in looks(3, 29, heads=4)]
    scores = [q.double() @ k.double().mT / 8**0.5 for q, k in looked]
    want = torch.stack([s.softmax(3) for s in scores]).numpy()
    with shifts(monkeypatch) as asked:
        found = class_row(looked)
    assert any(asked) == large
    groups = 2 * -(-4 // cores)  # of images and heads
    assert len(asked) <= 3 * (groups + 1)  # once known, the block's other maps are made once
    np.testing.assert_allclose(found, slow_rollout(want)[:, :, 0], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("score, shifted", [(50, False), (57, False), (70, True), (1e4, True)])
def test_rows_of_scores_near_the_ends_of_float32(score, shifted, sign, monkeypatch):
    """One row is all large or all small, another has both."""
    q, k = torch.zeros(2, 1, 1, 6, 4)
    q[..., 0, 0] = 2 * sign  # over √4
    k[..., 0] = score + torch.tensor([0, 0.5, 1, 0, -0.5, -1])
    q[..., 1, 1], k[..., 2, 1], k[..., 3, 1] = 2, 50, -50
    row = torch.tensor([[[0.4, 0.4, 0.1, 1e-7, 0.1, 0]]])
    scores = (q.double() @ k.double().mT / 2)[0, 0]
    want = row[0, 0].double() @ scores.softmax(1)
    with shifts(monkeypatch) as asked:
        found = attention._through(row, q, k)[0, 0]
    assert asked == [False, True] if shifted else asked == [False]
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_queries_and_keys_are_the_forward_passes_own(qk_norm):
    """None is computed twice, none copied where autograd holds it, no values held where not."""
    vit, images = tiny_vit((3, 3), qk_norm=qk_norm), torch.randn(2, 3, 24, 24)
    made = []
    for block in vit.blocks:
        block.attn.qkv.register_forward_hook(lambda module, args, out: made.append(out))
    class_rollout(vit, images)
    assert len(made) == len(vit.blocks)
    for block in vit.blocks:  # and no trace of it
        for part in (block.attn.q_norm, block.attn.k_norm):
            assert not part._forward_hooks and not hasattr(part, "kept")
    watch(vit.blocks)
    for grad in (True, False):
        made.clear()
        with torch.set_grad_enabled(grad):
            vit(images)
        for block, qkv in zip(vit.blocks, made, strict=True):
            q, k = taken(block)
            shares = {t.untyped_storage().data_ptr() for t in (q, k)}
            assert not q.requires_grad and not k.requires_grad
            if grad and not qk_norm:
                assert shares == {qkv.untyped_storage().data_ptr()}
            elif not grad:
                assert all(t.untyped_storage().nbytes() == 4 * t.numel() for t in (q, k))
            want = vit.blocks[0].attn  # heads side by side, q before k
            split = qkv.unflatten(2, (3, want.num_heads, -1))
            torch.testing.assert_close(q, block.attn.q_norm(split[:, :, 0].transpose(1, 2)))
            with pytest.raises(AttributeError):
                taken(block)


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


def test_one_map_of_a_core_is_alive_at_a_time_however_many_blocks():
    """A stack of all maps, as the formula reads, is what the count would see."""
    heads, tokens, n = 3, 37, 2
    for depth in (2, 12):
        looked = looks(depth, tokens, heads, n)
        with torch.no_grad(), counted_maps(tokens) as kept:
            maps = [(q @ k.transpose(2, 3)).softmax(3) for q, k in looked]
        assert kept.most >= depth * n * heads * tokens * tokens
        del maps
        with counted_maps(tokens) as count:
            class_row(looked)
        one = tokens * tokens * min(torch.get_num_threads(), n * heads)
        assert one <= count.most <= 2 * one, (depth, count.most / one)  # its next one, too


def test_a_map_is_made_in_parts(monkeypatch):
    monkeypatch.setattr(attention, "ROWS", 8)
    with counted_maps(37) as count:
        class_row(looks(3, 37))
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
