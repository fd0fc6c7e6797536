"""Where a classifier's rows point before it is trained."""

import numpy as np
import pytest
import torch

from src.artifacts.heads import load_head
from src.artifacts.predictions import load_predictions
from src.config.initialisers import ClassMeans, RandomInit
from src.initialisers import Known, initial_arrays
from src.logits import cosine_logits, head_logits
from src.networks.heads import build_head
from src.networks.ride import MeanOfHeads
from tests.fabricate import some_classes
from tests.training_kit import resumes_exactly, tiny_config, tiny_dataset, train_tiny

F = np.array([[3.0, 0], [0, 2], [0, 4], [1, 1]], np.float32)
LABELS = np.array([0, 1, 1, 2])


def known(classes=3) -> Known:
    return Known(lambda: F, LABELS, some_classes(classes))


def test_random_asks_for_no_features():
    def never():
        raise AssertionError("features were asked for")

    assert initial_arrays(RandomInit(), Known(never, LABELS, some_classes(3)), "linear") is None


def test_class_means_by_hand():
    half = 0.5**0.5
    rows = initial_arrays(ClassMeans(), known(), "cosine")["weight"]
    np.testing.assert_allclose(rows, [[1, 0], [0, 1], [half, half]], rtol=1e-6)
    linear = initial_arrays(ClassMeans(scale=8.0), known(), "linear")
    length = (3 + 2 + 4 + 2**0.5) / 4
    np.testing.assert_allclose(linear["weight"], 8 / length * rows, rtol=1e-6)
    assert not linear["bias"].any()


def test_a_class_without_an_image_begins_at_the_mean_of_all():
    rows = initial_arrays(ClassMeans(), known(classes=4), "cosine")["weight"]
    mean = np.array([1 + 0.5**0.5, 2 + 0.5**0.5])
    np.testing.assert_allclose(rows[3], mean / np.linalg.norm(mean), rtol=1e-6)


def test_a_branch_begins_at_the_means_of_its_own_features():
    rows = initial_arrays(ClassMeans(), known().only((1, 2)), "cosine")["weight"]
    np.testing.assert_allclose(rows, [[0], [1], [1]], atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_mean_of_heads_begins_as_the_whole_would(kind):
    heads = MeanOfHeads(build_head(kind, 2, 3, 5.0) for _ in range(2))
    seen = torch.cat([heads.seen(part) for part in torch.randn(4, 4).chunk(2, 1)], 1)
    weight = torch.randn(3, 4)
    heads.start_from({"weight": weight, "bias": torch.tensor([0.1, 0.2, 0.3])})
    arrays = {k: v.numpy() for k, v in heads.arrays().items()}
    found = head_logits(seen.numpy(), arrays, "linear")
    np.testing.assert_allclose(heads(seen).detach(), found, rtol=1e-4, atol=1e-5)
    if kind == "linear":
        np.testing.assert_allclose(arrays["weight"], weight, rtol=1e-6)


def test_02_starts_at_the_means_of_the_training_side(tmp_path, monkeypatch):
    """With a learning rate of next to nothing, what is saved is what the head began as."""
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    still = {"epochs": 1, "warmup_epochs": 0, "lr": 1e-12, "min_lr": 1e-12}
    directory = train_tiny(tiny_config({"head": "cosine", "head_init": "class_means"}, still), "m")
    _, arrays = load_head(directory / "head.safetensors")
    np.testing.assert_allclose(np.linalg.norm(arrays["weight"], axis=1), 1, rtol=1e-5)
    found = load_predictions(directory / "oof.npz", data.num_classes)
    z = cosine_logits(found.features, arrays["weight"], float(arrays["scale"]))
    np.testing.assert_allclose(z, found.logits, rtol=1e-3, atol=1e-3)
    random = train_tiny(tiny_config({"head": "cosine"}, still), "random")
    assert not np.allclose(load_head(random / "head.safetensors")[1]["weight"], arrays["weight"])


def test_a_killed_run_goes_on_with_the_same_head(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    resumes_exactly(tiny_config({"head_init": {"name": "class_means", "scale": 4}}), monkeypatch)
