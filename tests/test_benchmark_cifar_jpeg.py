"""benchmarks/cifar_jpeg.py: a second compression of the kind that the images had; paired seeds."""

from pathlib import Path

import numpy as np
from PIL import Image, JpegImagePlugin

from benchmarks import cifar_jpeg
from benchmarks.cifar_jobs import SCORES
from benchmarks.cifar_jpeg import Variant, compress_again, compressed, write_table
from src.artifacts.files import write_json
from src.artifacts.work import MANIFEST
from tests.benchmark_kit import row


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
    assert JpegImagePlugin.get_sampling(Image.open(given)) == cifar_jpeg.HALF_COLOUR
    flat = np.full((32, 32, 3), 90, dtype=np.uint8)
    np.testing.assert_allclose(compressed(flat), flat, atol=1)  # not moved, not padded with black


def test_differences_are_those_of_one_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_jpeg, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(cifar_jpeg, "pixels", lambda root: "")
    root = Path("data/raw/cifar10")
    for name, seed, share in (("given", 0, 0.5), ("given", 1, 0.6), ("again", 1, 0.57)):
        scores = Variant(name, seed, root).scores
        scores.mkdir(parents=True)
        rows = {each: {"balanced_accuracy": share} for each in cifar_jpeg.ROWS}
        write_json(scores / SCORES, {"rows": rows})
        write_json(scores / MANIFEST, {"git": "abc"})
    text = write_table(tmp_path / "RESULTS.md", root, [0, 1])
    assert row(text, "as given, bf16")[1:3] == ["0 1", "55.0 ± 7.1"]
    assert row(text, "compressed once more, bf16")[1:] == ["1", "57.0", "-3.0"] + ["57.0", "-3.0"]
    assert "float32" not in text.split("| --- |")[-1]
