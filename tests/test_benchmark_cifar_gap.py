"""benchmarks/cifar_gap.py: a second compression like the first, a bare loop, and paired seeds."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, JpegImagePlugin

from benchmarks import cifar_gap
from benchmarks.cifar_gap import Variant, compress_again, compressed, write_table
from benchmarks.cifar_jobs import SCORES
from benchmarks.cifar_table import Section
from src.artifacts.files import write_json
from src.artifacts.work import MANIFEST
from src.config.read import load_config
from src.networks.build import build_network
from tests.benchmark_kit import row
from tests.fabricate import some_classes


def test_every_image_is_compressed_once_more_and_kept_lossless(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    given = tmp_path / "cifar" / "test" / "0_plane" / "7.jpg"
    given.parent.mkdir(parents=True)
    Image.fromarray(image).save(given, quality=75, subsampling=2)
    compress_again(tmp_path / "cifar", tmp_path / "again")
    (copy,) = (tmp_path / "again").rglob("*.*")
    assert copy.relative_to(tmp_path / "again") == Path("test/0_plane/7.png")
    once, twice = (np.asarray(Image.open(path)).astype(int) for path in (given, copy))
    assert twice.shape == once.shape == image.shape
    assert 3 < np.abs(twice - once).mean() < np.abs(once - image).mean()  # less is left to lose
    assert JpegImagePlugin.get_sampling(Image.open(given)) == cifar_gap.HALF_COLOUR
    flat = np.full((32, 32, 3), 90, dtype=np.uint8)
    np.testing.assert_allclose(compressed(flat), flat, atol=1)  # not moved, not padded with black


def test_the_bare_loop_learns_by_the_schedule_of_the_config(tmp_path, monkeypatch):
    """Two colours are told apart; the rate drops where the config says, and is warmed up."""
    paths = [str(tmp_path / f"{i}.png") for i in range(64)]
    for i, path in enumerate(paths):
        Image.new("RGB", (32, 32), (200 * (i % 2), 90, 200 * (1 - i % 2))).save(path)
    images = pd.DataFrame({"path": paths, "label": [i % 2 for i in range(64)]})
    train = {"epochs": 4, "batch_size": 16, "warmup_epochs": 1, "milestones": [0.5], "gamma": 0.1}
    items = [f"train.{key}={value}" for key, value in train.items()]
    config = load_config(cifar_gap.CONFIG, ["model.backbone=cifar_resnet20", *items])
    rates, step = [], torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)),
    )
    network, _ = build_network(config.model, some_classes(2))
    assert list(cifar_gap.trained(network, images, config, seed=0)) == [1, 2, 3, 4]
    np.testing.assert_allclose(rates[:5], [0.025, 0.05, 0.075, 0.1, 0.1])
    np.testing.assert_allclose(rates[7:], [0.1] + [0.01] * 8)
    whole = cifar_gap.whole(config.model)
    logits = cifar_gap.predicted(network, cifar_gap.Files(paths, [0] * 64, whole))
    assert (logits.argmax(1) == images["label"]).all()


def test_differences_are_those_of_one_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_gap, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(cifar_gap, "pixels", lambda root: "")
    root = Path("data/raw/cifar10")
    for name, seed, share in (("given", 0, 0.5), ("given", 1, 0.6), ("again", 1, 0.57)):
        scores = Variant(name, seed, root).scores
        scores.mkdir(parents=True)
        rows = {each: {"balanced_accuracy": share} for each in cifar_gap.ROWS}
        write_json(scores / SCORES, {"rows": rows})
        write_json(scores / MANIFEST, {"git": "abc"})
    text = write_table(tmp_path / "RESULTS.md", root, "cpu", [0, 1])
    assert row(text, "02, bf16")[1:3] == ["0 1", "55.0 ± 7.1"]
    assert row(text, "02, bf16, images compressed once more")[1:] == ["1", "57.0", "-3.0"] + [
        "57.0",
        "-3.0",
    ]
    assert "float32" not in text.split("| --- |")[-1]


def test_a_bare_loop_of_the_published_budget_is_compared_with_the_kept_row(tmp_path, monkeypatch):
    """Its best test epoch is told beside the last; the row of cifar_lt.py has its own file."""
    monkeypatch.setattr(cifar_gap, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(cifar_gap, "pixels", lambda root: "")
    root, out = Path("data/raw/cifar10"), tmp_path / "RESULTS.md"
    line = {"split": "exp100", "row": "ce", "seed": "0", "epoch": "last", "accuracy": 0.65}
    others = [line | {"seed": "1"}, line | {"split": "exp10"}, line | {"row": "ce/crt"}]
    facts = {"device": "CPU", "git": "old"}
    Section(cifar_gap.CONFIG, "published").scores.keep([o | facts for o in [line, *others]], out)
    scores = Variant("torch", 0, root, "published").scores
    scores.mkdir(parents=True)
    looks = [{each: {"balanced_accuracy": s} for each in cifar_gap.ROWS} for s in (0.6, 0.68, 0.66)]
    write_json(scores / SCORES, {"rows": looks[-1], "looks": looks})
    write_json(scores / MANIFEST, {"git": "new"})
    for _ in range(2):  # with its run, and from what was kept of it
        text = write_table(out, root, "published", [0])
        assert "trained at commit new, old" in text
        assert row(text, "02, bf16")[1:3] == ["0", "65.0"]
        bare = row(text, "a bare loop of torch, float32")
        assert bare[1:4] == ["0", "66.0", "+1.0"] and bare[-1] == "68.0 (of 3)"
        (scores / MANIFEST).unlink(missing_ok=True)
