"""No epoch: the weights as loaded go through every stage, and 03 fits heads on their features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import src.training.trials as searching
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json
from src.artifacts.predictions import load_predictions
from src.artifacts.work import MANIFEST
from src.config.read import with_values
from src.ensemble.ensemble import ensemble
from src.errors import UserError
from src.inference.predict import predict
from src.networks.cifar_resnet import DEPTHS, CifarResNet
from src.networks.weights import load_network
from src.posthoc.calibrate import posthoc
from src.rebalance.stage2 import stage2
from src.report.context import gather
from src.report.page import write_report
from src.training.stage1 import stage1
from tests.fabricate import seal
from tests.test_training import lrs
from tests.training_kit import tiny_config, tiny_dataset, train_tiny

HOME, SOURCE = Path("runs/tiny/probe"), Path("body.safetensors")
MEANS = {"pretrained": str(SOURCE), "head_init": "class_means"}
HEADS = [
    {"head": "crt", "epochs": 3},
    {"head": "cosine", "epochs": 3},
    {"head": "ncm"},
    {"head": "knn", "k": 3},
]


@pytest.fixture
def body(tmp_path, monkeypatch) -> dict[str, torch.Tensor]:
    """The tiny dataset, and weights to probe; their tensors."""
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    torch.manual_seed(3)
    state = CifarResNet(DEPTHS["cifar_resnet20"]).state_dict()
    save_file(state, SOURCE)
    return state


def probe(model: dict | None = None, **train):
    return tiny_config(MEANS | (model or {}), {"epochs": 0} | train)


def test_a_probe_goes_through_all_stages(body, capsys, curves):
    config = with_values(probe(ema=0.9), {"stage2": HEADS, "predict.evidence": 0}, "")
    rows = stage1(config, "probe", [], False)
    said = capsys.readouterr().out  # of two folds
    assert said.count(f"{SOURCE}: pretrained body, new head of 6 classes") == 1
    assert rows["fold"].tolist() == ["fold0", "fold1"] and rows["accuracy"].gt(1 / 6).all()
    for fold in (0, 1):
        where = HOME / f"stage1/fold{fold}"
        assert not [n for n in ("metrics.csv", "last.pt") if (where / n).exists()]
        facts = read_json(where / MANIFEST)
        assert facts["select"] == "last" and facts["train_seconds"] == 0
    assert not (HOME / "stage1/curves.png").exists()
    assert stage1(config, "probe", ["0"], False)["accuracy"][0] == rows["accuracy"][0]
    found = stage2(config, "probe", False)
    assert found["classifier"].nunique() == len(HEADS)
    posthoc(config, "probe")
    assert all(path.is_file() for path in predict(config, "probe", False).values())
    seal(Path("runs/tiny/folds"), submission={"id_column": "image_id", "label_column": "class_id"})
    ensemble([config], ["probe"], overwrite=False)
    report = gather("tiny", ["probe"], [config])
    assert not report.experiments[0].problem and "stage2/crt" in report.experiments[0].rows
    page = write_report(report).read_text()
    assert "Nothing was trained (<code>train.epochs: 0</code>)" in page and "No epoch" not in page
    assert "No head has distances" not in page and "Zero-shot" not in page
    assert "<small>NLL (nats)</small>" in page and "cross-fitted gain" not in page
    assert page.split('id="leaderboard"')[1].split("</section>")[0].count("<th scope=row>") == 1


def test_a_probes_logits_are_cosines_with_class_means_of_the_loaded_network(body):
    """Reference from the formula: s <f, w_c> / mean length, w_c the unit mean of unit features."""
    data, where = load_dataset("tiny"), train_tiny(probe(), "probe")
    network, _ = load_network(where / "weights.safetensors", data)
    own = network.state_dict()
    assert all(torch.equal(own[f"backbone.{name}"], tensor) for name, tensor in body.items())
    found = load_predictions(where / "oof.npz", 6)
    stage2(with_values(probe(), {"stage2": ["ncm"]}, ""), "probe", False)
    labels, f = cached_features(data)
    unit = f / np.linalg.norm(f, axis=1, keepdims=True)
    w = np.stack([unit[labels == c].mean(0) for c in range(6)])
    w *= 16 / np.linalg.norm(w, axis=1, keepdims=True) / np.linalg.norm(f, axis=1).mean()
    expected = found.features.astype(np.float64) @ w.T
    np.testing.assert_allclose(found.logits, expected, rtol=1e-3, atol=1e-3)


def cached_features(data) -> tuple[np.ndarray, np.ndarray]:
    """Labels and float64 features of fold 0's training images, as 02 left them."""
    with np.load(next(Path("runs/tiny/probe/stage1/features").glob("folds-*.npz"))) as file:
        place = {name: i for i, name in enumerate(file["image_id"])}
        table = data.training(0)
        rows = [place[name] for name in table["image_id"]]
        return table["label"].to_numpy(), file["features"][rows].astype(np.float64)


def test_its_files_hold_heads_alone_and_name_the_body(body):
    where = train_tiny(probe(), "probe")
    assert set(load_file(where / "weights.safetensors")) == {"classifier.weight", "classifier.bias"}
    SOURCE.rename("elsewhere")
    with pytest.raises(UserError, match="what was frozen comes from body.safetensors"):
        load_network(where / "weights.safetensors", load_dataset("tiny"))


def test_random_weights_are_saved_whole_and_full_has_no_scores(body):
    config = probe({"pretrained": False})
    rows = stage1(config, "probe", ["0", "full"], False)
    assert rows["accuracy"].notna().tolist() == [True, False]
    kept = load_file(HOME / "stage1/full/weights.safetensors")
    assert set(kept) >= {f"backbone.{name}" for name in body}
    assert not (HOME / "stage1/full/oof.npz").exists()


def test_the_head_of_another_experiment_is_probed_as_it_is(body):
    train_tiny(probe({"head": "cosine"}), "old")
    again = probe({"head": "cosine", "pretrained": "experiment:old", "head_init": "random"})
    where = train_tiny(again, "new")
    old, new = (
        load_predictions(p / "oof.npz", 6) for p in (HOME.parent / "old/stage1/fold0", where)
    )
    np.testing.assert_allclose(new.logits, old.logits, atol=1e-5)


@pytest.mark.parametrize(
    "train",
    [
        {"mixing": {"mixup": 0.2}},
        {"freeze": ["*"]},
        {"freeze": [{"name": "backbone.*", "until": 2}]},
        {"deferred": {"weights": True}},
        {"resizing": [{"size": 8, "share": 0.5}]},
        {"select": "best"},
    ],
)
def test_what_counts_epochs_is_no_obstacle(body, train):
    """So that `--set train.epochs=0` probes the network of any config."""
    where = train_tiny(probe(**train), "probe")
    assert read_json(where / MANIFEST)["select"] == "last"


def test_what_an_untrained_network_cannot_be_asked_is_refused(body):
    with pytest.raises(UserError, match="random head knows no class: set model.head_init"):
        probe({"head_init": "random"})
    with pytest.raises(UserError, match="train.pseudo adds images to train on"):
        probe(pseudo={"experiment": "first"})
    with pytest.raises(UserError, match="search the heads on its features with 03"):
        searching.search(probe(), "probe", False)
    keys = {"train.epochs": {"low": 0, "high": 3}}
    asked = with_values(tiny_config(), {"search.keys": keys}, "")
    with pytest.raises(UserError, match="no setting of stage 1 matters"):
        searching.search(asked, "probe", False)


@pytest.mark.parametrize(("epochs", "asked", "warm"), [(1, 1.0, 5), (1, 0.3, 3), (2, 5.0, 10)])
def test_a_warm_up_that_would_be_the_whole_training_is_half_of_it(epochs, asked, warm):
    train = tiny_config(train={"epochs": epochs, "warmup_epochs": asked, "min_lr": 0}).train
    found = lrs(train)  # ten steps an epoch
    assert len(found) == 10 * epochs and found[0] == pytest.approx(0.05 / 100)
    assert np.all(np.diff(found[:warm]) > 0) and np.all(np.diff(found[warm:]) < 0)
