"""Heads that know what their classes are called: where they start, and those whose places are the
names themselves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from benchmarks import text_heads
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_arrays, read_json, write_arrays, write_text
from src.artifacts.heads import load_head, save_head
from src.artifacts.predictions import load_predictions
from src.artifacts.work import MANIFEST, RUNS
from src.config.heads import CRT, LabelEmbedding, TextSimilarity
from src.config.initialisers import TextInit
from src.config.model import Model
from src.config.read import parse_config
from src.config.text import Text
from src.errors import UserError
from src.fusion import build_steps
from src.fusion.step import State
from src.initialisers import Known, initial_arrays
from src.initialisers.text import GRID, to_features, to_names
from src.logits import head_distance, head_logits, unit
from src.networks import heads
from src.networks.clip_projection import image_projection
from src.networks.weights import load_network
from src.rebalance import HEADS
from src.rebalance.features import FeatureSet
from src.rebalance.stage2 import Fold, stage2
from tests.fabricate import some_classes
from tests.training_kit import (
    DATASET,
    resumes_exactly,
    tiny_config,
    tiny_dataset,
    tiny_text,
    train_tiny,
)

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
STILL = {"epochs": 1, "warmup_epochs": 0, "lr": 1e-12, "min_lr": 1e-12}


# ---- the head ----------------------------------------------------------------------------------


def some_head(kinds=4, width=6, wide=3):
    rng = np.random.default_rng(2)
    return {
        "projection": rng.normal(size=(wide, width)).astype(np.float32),
        "bias": rng.normal(size=wide).astype(np.float32),
        "text": rng.normal(size=(kinds, wide)).astype(np.float32),
        "scale": np.float32(9),
    }


def test_logits_and_distance_against_loops():
    f, head = RNG.normal(size=(5, 6)), some_head()
    want = np.empty((5, 4))
    for i, c in np.ndindex(5, 4):
        g = head["projection"].astype(float) @ f[i] / np.sqrt(f[i] @ f[i]) + head["bias"]
        t = head["text"][c].astype(float)
        want[i, c] = (g @ t) / np.sqrt((g @ g) * (t @ t))
    np.testing.assert_allclose(head_logits(f, head, "label_embedding"), 9 * want, rtol=1e-5)
    found = head_distance(f, head, "label_embedding")
    np.testing.assert_allclose(found, 1 - want.max(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("correct", [False, True])
def test_the_module_says_what_its_arrays_say_and_keeps_the_names(correct, tmp_path):
    torch.manual_seed(0)
    names = RNG.normal(size=(4, 3)).astype(np.float32)
    head = heads.LabelEmbedding(6, names, 9.0, correct)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    f, labels = torch.randn(8, 6), torch.arange(8) % 4
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(f), labels).backward()
        optimizer.step()
    arrays = {k: v.numpy() for k, v in head.arrays().items()}
    save_head(tmp_path / "head.safetensors", head.kind, arrays)
    kind, found = load_head(tmp_path / "head.safetensors")
    np.testing.assert_allclose(
        head_logits(f.numpy(), found, kind), head(f).detach(), rtol=1e-4, atol=1e-4
    )
    own = names - names.mean(0)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    np.testing.assert_allclose(head.text, own, rtol=1e-5, atol=1e-6)
    assert np.allclose(found["text"], own, atol=1e-6) != correct


def test_a_file_whose_widths_do_not_fit_is_refused(tmp_path):
    arrays = some_head() | {"bias": np.zeros(2, np.float32)}
    save_head(tmp_path / "head.safetensors", "label_embedding", arrays)
    with pytest.raises(UserError, match="bias of this label_embedding head"):
        load_head(tmp_path / "head.safetensors")


# ---- the regressions ---------------------------------------------------------------------------


def ridge_by_hand(x, y, ridge):
    """Slope of the rows y on the rows x, both centred."""
    return np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)


@pytest.mark.parametrize("wide", [3, 12])  # narrower and wider than there are classes
def test_names_to_features_against_refitting_without_each_class(wide):
    rng = np.random.default_rng(wide)
    names, means = rng.normal(size=(9, wide)), rng.normal(size=(8, 5))
    means += 0.7 * names[:8, :3] @ rng.normal(size=(3, 5))
    present = np.arange(9) != 8
    own = names[present]
    largest = np.linalg.svd(own - own.mean(0))[1][0] ** 2

    def predicted(rows, ridge, query):
        x, y = own[rows], means[rows]
        return y.mean(0) + (query - x.mean(0)) @ ridge_by_hand(x - x.mean(0), y - y.mean(0), ridge)

    def left_out(ridge):
        others = [np.arange(8) != c for c in range(8)]
        return sum(
            np.sum((means[c] - predicted(rows, ridge, own[c])) ** 2)
            for c, rows in enumerate(others)
        )

    best = min(GRID * largest, key=left_out)
    want = predicted(np.arange(8), best, names)
    np.testing.assert_allclose(to_features(names, means, present), want, rtol=1e-6, atol=1e-8)


def test_features_to_names_against_the_normal_equations():
    rng = np.random.default_rng(3)
    labels = np.array([0] * 9 + [1] * 4 + [2] * 2)  # and none of class 3
    f, names = rng.normal(1, 1, size=(15, 6)), rng.normal(size=(4, 3))
    t = names - names.mean(0)
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    u = f / np.linalg.norm(f, axis=1, keepdims=True)
    a = np.array([1 / (3 * 9)] * 9 + [1 / (3 * 4)] * 4 + [1 / (3 * 2)] * 2)
    centre, target = a @ u, a @ t[labels]
    x, y = u - centre, t[labels] - target
    covariance = x.T @ (a[:, None] * x)
    loading = 0.5 * np.trace(covariance) / 6
    p = np.linalg.solve(covariance + loading * np.eye(6), x.T @ (a[:, None] * y)).T
    found, bias = to_names(f.astype(np.float32), labels, names, ridge=0.5)
    np.testing.assert_allclose(found, p, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bias, target - p @ centre, rtol=1e-4, atol=1e-5)
    many = to_names(np.repeat(f, 600, 0), np.repeat(labels, 600), names, ridge=0.5)  # in blocks
    np.testing.assert_allclose(many[0], found, rtol=1e-4, atol=1e-5)


# ---- a planted world: features follow the names ------------------------------------------------


def world(seed=0, classes=30, empty=(7, 19), wide=6, width=24, noise=0.15):
    """Features around A t_c, long-tailed, two classes without a training image. Returns training
    features and labels, a balanced test side, and the names."""
    rng = np.random.default_rng(seed)
    names = unit(rng.normal(size=(classes, wide))).astype(np.float32)
    means = 2 + names @ rng.normal(size=(wide, width))
    counts = np.maximum((60 * 0.85 ** np.arange(classes)).astype(int), 1)
    counts[list(empty)] = 0
    labels, tests = np.repeat(np.arange(classes), counts), np.repeat(np.arange(classes), 10)
    f, g = (means[y] + noise * rng.normal(size=(len(y), width)) for y in (labels, tests))
    return f.astype(np.float32), labels, g.astype(np.float32), tests, names


def balanced(z, labels, only=None):
    right = z.argmax(1) == labels
    classes = np.unique(labels) if only is None else only
    return np.mean([right[labels == c].mean() for c in classes])


def shuffled(names):
    return names[np.random.default_rng(1).permutation(len(names))]


def features_of(f, labels, names) -> FeatureSet:
    return FeatureSet(f, [], labels, some_classes(len(names), text=names))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_head_begins_near_classes_that_it_has_no_image_of(kind):
    f, labels, g, tests, names = world()

    def at_start(text):
        known = Known(lambda: f, labels, some_classes(len(text), text=text))
        arrays = initial_arrays(TextInit(), known, kind)
        return head_logits(g, arrays | ({"scale": 1.0} if kind == "cosine" else {}), kind)

    assert balanced(at_start(names), tests) > 0.8
    assert balanced(at_start(names), tests, only=(7, 19)) > 0.7
    assert balanced(at_start(shuffled(names)), tests, only=(7, 19)) < 0.3


@pytest.mark.parametrize(
    "spec", [TextSimilarity(), LabelEmbedding(epochs=5), LabelEmbedding(init="random", epochs=150)]
)
def test_names_let_heads_find_classes_without_images(spec):
    f, labels, g, tests, names = world()
    if spec.head == "label_embedding" and spec.init.name == "random":
        f, g = f - 2, g - 2  # what all features share, it would learn to ignore slowly

    def fitted(text):
        kind, arrays = HEADS[spec.head](spec, features_of(f, labels, text), 0, CPU)
        return head_logits(g, arrays, kind)

    assert balanced(fitted(names), tests) > 0.7
    assert balanced(fitted(names), tests, only=(7, 19)) > 0.6
    assert balanced(fitted(shuffled(names)), tests, only=(7, 19)) < 0.3


def test_two_classes_and_one_image_each():
    names = np.array([[1.0, 0, 0], [0, 1, 0]], np.float32)
    f = np.array([[1.0, 0.2], [0.1, 1.0]], np.float32)
    for spec in (TextSimilarity(), LabelEmbedding(epochs=2), CRT(epochs=2, init="text")):
        kind, arrays = HEADS[spec.head](spec, features_of(f, np.arange(2), names), 0, CPU)
        assert head_logits(f, arrays, kind).argmax(1).tolist() == [0, 1]


def test_the_benchmark_hands_names_to_other_classes_and_changes_nothing_else():
    f, labels, *_, names = world()
    fold = Fold(Path("fold0"), {"": features_of(f, labels, names)}, None)
    found = text_heads.misnamed(fold, 3).features[""]
    assert found.plain is f and found.labels is labels
    assert not np.array_equal(found.classes.text, names)
    np.testing.assert_array_equal(np.sort(found.classes.text, 0), np.sort(names, 0))
    bins = np.array(["many"] * 15 + ["few"] * 15)
    y, right = np.arange(30), np.eye(30, dtype=np.float32)
    wrong = np.where(y[:, None] >= 20, np.roll(right, 1, 1), right)
    row = text_heads.scores([right], [wrong], [y], bins)
    assert row["gain_value"] == pytest.approx(1 / 3) and row["few_value"] == pytest.approx(2 / 3)


# ---- CLIP's own projection ---------------------------------------------------------------------

TINY = {"embed_dim": 12, "depth": 1, "num_heads": 2, "img_size": 32, "patch_size": 16}


@pytest.fixture
def tower(tmp_path):
    """A random CLIP tower of timm, of 12 features and 5 of text, as a local file; and its layer."""
    torch.manual_seed(0)
    whole = timm.create_model("vit_base_patch16_clip_224", num_classes=5, **TINY)
    save_file(whole.state_dict(), tmp_path / "tower.safetensors")
    keys = {"backbone": "vit_base_patch16_clip_224", "kwargs": TINY, "image_size": 32}
    model = Model(pretrained=str(tmp_path / "tower.safetensors"), **keys)
    return model, whole.head.weight.detach().numpy().T


def test_the_projection_of_a_clip_tower_is_found(tower, tmp_path):
    model, layer = tower
    clip, other = Text(encoder="open_clip"), Text()
    np.testing.assert_array_equal(image_projection(model, clip, "auto"), layer)
    np.testing.assert_array_equal(image_projection(model, other, "clip"), layer)
    assert image_projection(model, other, "auto") is None  # names by another model
    assert image_projection(model, clip, "fitted") is None
    untrained = model.model_copy(update={"pretrained": False})
    assert image_projection(untrained, clip, "auto") is None
    openai = tmp_path / "openai.safetensors"
    save_file({"visual.proj": torch.from_numpy(layer).contiguous()}, openai)
    authors = model.model_copy(update={"pretrained": str(openai)})
    np.testing.assert_array_equal(image_projection(authors, clip, "auto"), layer)


def test_clip_starts_as_lift_does(tower):
    _, layer = tower
    names, f = RNG.normal(size=(7, 5)), RNG.normal(size=(20, 12)).astype(np.float32)
    labels = np.arange(20) % 7
    known = Known(lambda: f, labels, some_classes(7, text=names), lambda: layer)
    found = initial_arrays(TextInit(), known, "cosine")["weight"]
    for c in range(7):
        w = layer.astype(float) @ (names[c] / np.sqrt(names[c] @ names[c]))
        np.testing.assert_allclose(found[c], w / np.sqrt(w @ w), rtol=1e-5)
    fitted = initial_arrays(TextInit(), replace(known, to_text=lambda: None), "cosine")["weight"]
    assert not np.allclose(found, fitted, atol=0.1)
    wide = replace(known, to_text=lambda: layer[:, :4])  # of other text: the regression is taken
    np.testing.assert_allclose(initial_arrays(TextInit(), wide, "cosine")["weight"], fitted)
    with pytest.raises(UserError, match=r"needs an image .* = \[12, 5\], .* one of \[12, 4\]"):
        initial_arrays(TextInit(projection="clip"), wide, "cosine")
    with pytest.raises(UserError, match="the backbone has none"):
        initial_arrays(TextInit(projection="clip"), known.only((0, 12)), "cosine")


# ---- stages ------------------------------------------------------------------------------------


def test_02_starts_where_the_names_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, section = tiny_dataset(), tiny_text()
    cosine = tiny_config({"head": "cosine", "head_init": "text"}, STILL, text=section)
    weight = load_head(train_tiny(cosine, "cosine") / "head.safetensors")[1]["weight"]
    np.testing.assert_allclose(np.linalg.norm(weight, axis=1), 1, rtol=1e-5)
    model = {"head": "label_embedding", "head_init": "text"}
    directory = train_tiny(tiny_config(model, STILL, text=section), "m")
    projection = load_head(directory / "head.safetensors")[1]["projection"]
    arrays = read_arrays("class_text.npz")
    write_arrays("class_text.npz", **arrays | {"embeddings": arrays["embeddings"][::-1]})
    other = train_tiny(tiny_config(model, STILL, text=section), "other")
    changed = load_head(other / "head.safetensors")[1]["projection"]
    assert not np.allclose(changed, projection, rtol=0.1)
    with pytest.raises(UserError, match="made from another 'text' than the one there now"):
        train_tiny(tiny_config(model, STILL, text=section), "m")
    assert read_json(directory / MANIFEST)["inputs"]["text"]
    assert not (data.directory / "text").exists()


@pytest.mark.parametrize("correct", [False, True])
def test_a_network_on_names_is_loaded_without_them(correct, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    model = {"head": "label_embedding", "correct_text": correct}
    directory = train_tiny(tiny_config(model, text=tiny_text()), "m")
    (tmp_path / "class_text.npz").unlink()
    data = load_dataset(DATASET)
    for path in data.directory.glob("text-*.npz"):
        path.unlink()
    network, _ = load_network(directory / "weights.safetensors", data)
    kind, arrays = load_head(directory / "head.safetensors")
    found = load_predictions(directory / "oof.npz", data.num_classes)
    z = head_logits(found.features, arrays, kind)
    np.testing.assert_allclose(z, found.logits, rtol=1e-3, atol=1e-3)
    own = {name: a for name, (_, a) in network.heads().items()}[""]
    np.testing.assert_array_equal(own["text"], arrays["text"])


def test_a_killed_run_goes_on_from_the_same_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    model = {"head": "label_embedding", "head_init": "text", "correct_text": True}
    resumes_exactly(tiny_config(model, text=tiny_text()), monkeypatch)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Stage 1 and three heads on names, in their own working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("names"))
        tiny_dataset()
        config = tiny_config(
            {"head": "label_embedding"},
            text=tiny_text(),
            stage2=[
                {"head": "text"},
                {"head": "label_embedding", "epochs": 2},
                {"head": "crt", "init": "text", "epochs": 2},
                {"head": "ncm"},
            ],
        )
        directory = train_tiny(config, "names")
        write_text(directory.parents[1] / "config.yaml", "{}")  # the config at hand counts
        patch.setattr("src.rebalance.stage2.trained_config", lambda config, home: config)
        yield config, directory.parents[1], lambda: stage2(config, "names", False)


def test_03_fits_heads_on_names_and_again_when_these_change(three, capsys):
    _, home, run = three
    table = run()
    assert table["classifier"].tolist() == ["text", "label_embedding", "crt", "ncm"]
    assert table["balanced_accuracy"].notna().all()
    for name in ("text", "label_embedding"):
        found = load_predictions(home / "stage2" / name / "fold0" / "oof.npz", 6)
        assert found.distance is not None and np.abs(found.logits).max() <= 16.001
    manifests = {n: read_json(home / "stage2" / n / "fold0" / MANIFEST) for n in ("crt", "ncm")}
    assert "text" in manifests["crt"]["inputs"] and "text" not in manifests["ncm"]["inputs"]
    arrays = read_arrays("class_text.npz")
    write_arrays("class_text.npz", **arrays | {"embeddings": arrays["embeddings"][::-1]})
    capsys.readouterr()
    run()
    said = capsys.readouterr().out
    for name in ("text", "label_embedding", "crt"):
        assert f"{RUNS / DATASET / 'names' / 'stage2' / name / 'fold0'}: 'text' changed" in said
    assert f"{RUNS / DATASET / 'names' / 'stage2' / 'ncm' / 'fold0'}: finished already" in said


def test_what_needs_a_linear_head_refuses_one_on_names():
    config = tiny_config({"head": "label_embedding"}, posthoc={"steps": ["tau_norm"]})
    f, head = RNG.normal(size=(5, 6)).astype(np.float32), some_head()
    z = head_logits(f, head, "label_embedding")
    state = State(z, f, "stage1", {"stage1": ("label_embedding", head)})
    said = build_steps(config)[0].refuses(state)
    assert said == "needs a linear head, not one of kind label_embedding"


@pytest.mark.parametrize(
    "sections, says",
    [
        ({"model": {"head": "label_embedding", "network": "ride"}}, "mean of linear heads"),
        ({"model": {"head": "label_embedding"}, "stage2": ["lws"]}, "Use crt, cosine or ncm"),
        ({"model": {"head": "label_embedding", "head_init": "class_means"}}, "head_init=text or"),
        ({"model": {"correct_text": True}}, "correct_text is of the label_embedding head"),
        ({"stage2": [{"head": "label_embedding", "init": "class_means"}]}, "class_means"),
        ({"stage2": [{"head": "crt", "bn": "train", "init": "text"}]}, "bn: train has none"),
    ],
)
def test_choices_that_exclude_each_other(sections, says):
    with pytest.raises(UserError, match=says):
        parse_config(sections)
