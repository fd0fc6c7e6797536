"""Features of a frozen body: one pass for all folds and stages, and the same artifacts as with one
pass each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import src.training.job as job_module
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_arrays, sha256, write_json
from src.artifacts.predictions import Predictions
from src.artifacts.work import MANIFEST
from src.config.read import with_values
from src.data.transforms import View
from src.inference.predict import predict
from src.networks.cifar_resnet import DEPTHS, CifarResNet
from src.networks.kept import Kept, kept_features
from src.networks.plain import Plain
from src.rebalance.stage2 import stage2
from src.runtime import start
from src.training.stage1 import stage1
from tests.training_kit import tiny_config, tiny_dataset

RUN, SOURCE = Path("runs/tiny"), Path("body.safetensors")
HEADS = [{"head": "crt", "epochs": 3}, {"head": "ncm"}, {"head": "crt", "name": "seen", "views": 1}]
PROBE = {"epochs": 0}
FROZEN = {"epochs": 2, "freeze": ["backbone.*"], "ema": 0.9}
FILES = ("stage1/*/*.safetensors", "stage1/*/oof.npz", "stage2/*/*/*.safetensors",
         "stage2/*/*/oof.npz", "predict/*.npz")  # fmt: skip


class Passed:
    """Images that a body was asked about, without those of zeros that only try a network."""

    def __init__(self, monkeypatch):
        self.evaluated = self.trained = 0
        embed = Plain.embed

        def counted(network, images):
            number = int(images.flatten(1).any(1).sum())
            self.trained += number * network.training
            self.evaluated += number * (not network.training)
            return embed(network, images)

        monkeypatch.setattr(Plain, "embed", counted)

    def new(self) -> int:
        """Evaluated since it was asked last."""
        found, self.evaluated = self.evaluated, 0
        return found


@pytest.fixture
def passed(tmp_path, monkeypatch) -> Passed:
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    torch.manual_seed(3)
    save_file(CifarResNet(DEPTHS["cifar_resnet20"]).state_dict(), SOURCE)
    return Passed(monkeypatch)


def config(train: dict, model: dict | None = None):
    start_of = {"pretrained": str(SOURCE), "head": "cosine"}
    head = {"head_init": "class_means"} if train["epochs"] == 0 else {}
    settings = tiny_config(start_of | head | (model or {}), train)
    return with_values(settings, {"stage2": HEADS, "predict.evidence": 0}, "")


def stages(settings, name: str, passed: Passed) -> list[int]:
    """02, 03 and 05; images that were passed without training in each."""
    found = []
    stage1(settings, name, [], False)
    found.append(passed.new())
    stage2(settings, name, False)
    found.append(passed.new())
    write_json(RUN / name / "posthoc/posthoc.json", {"head": "stage1", "steps": []})
    write_json(RUN / name / "posthoc" / MANIFEST, {"inputs": {}})
    predict(settings, name, False)
    return [*found, passed.new()]


def results(name: str) -> dict[str, Path]:
    home = RUN / name
    found = (path for pattern in FILES for path in home.glob(pattern))
    return {path.relative_to(home).as_posix(): path for path in found}


@pytest.mark.parametrize("train", [PROBE, FROZEN], ids=["probe", "frozen"])
def test_all_folds_and_stages_share_one_pass_and_nothing_else_changes(passed, monkeypatch, train):
    data, views = load_dataset("tiny"), 2  # views: with mirrored ones
    n, tests, folds = len(data.images), len(data.test), len(data.folds)
    training = sum(len(data.training(k)) for k in data.folds)
    augmented = training  # the one of `seen`, which differs from fold to fold
    assert stages(config(train), "shared", passed) == [n, augmented, tests * views]
    monkeypatch.setattr(job_module, "_is_body", lambda network, rest: False)
    first = n + training if train is PROBE else train["epochs"] * n
    alone = [first, training + augmented, folds * tests * views]
    assert stages(config(train), "alone", passed) == alone
    one, other = results("shared"), results("alone")
    assert one.keys() == other.keys() and len(one) > 12
    for name, path in one.items():
        if path.suffix == ".npz":
            here, there = read_arrays(path), read_arrays(other[name])
            assert here.keys() == there.keys()
            for key in here:
                np.testing.assert_array_equal(here[key], there[key], f"{name}: {key}")
        elif path.name != "weights.safetensors":  # whose header says who shares
            assert sha256(path) == sha256(other[name]), name


def test_a_body_that_was_trained_is_no_other_networks(passed):
    """Nor one that has a trained part, nor random weights, nor what makes logits in its own way."""
    partly = {"epochs": 1, "freeze": ["backbone.layer1.*", "backbone.conv1.*"]}
    cases = {
        "whole": config({"epochs": 1}),
        "partly": config(partly),
        "statistics": config({"epochs": 1, "freeze": ["backbone.*.weight"]}),
        "random": config(PROBE, {"pretrained": False}),
        "kt": config({"epochs": 1, "freeze": ["backbone.*"]}, {"network": "kt", "head": "linear"}),
    }
    for name, settings in cases.items():
        stage1(settings, name, ["0"], False)
        assert not (RUN / name / "stage1/features").exists(), name
        weights = RUN / name / "stage1/fold0/weights.safetensors"
        assert kept_features(weights, Path("x"), Path("y")) is None, name


def test_each_fold_has_its_own_where_each_starts_from_another_body(passed):
    stage1(config({"epochs": 1}), "first", [], False)
    again = config({"epochs": 1, "freeze": ["backbone.*"]}, {"pretrained": "experiment:first"})
    stage1(again, "second", [], False)
    assert len(list((RUN / "second/stage1/features").glob("*.npz"))) == len(
        load_dataset("tiny").folds
    )


def test_rows_that_lack_are_made_and_added(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, asked = tiny_dataset(), []
    values = np.random.default_rng(0).normal(size=(len(data.images), 3)).astype(np.float32)

    def run(table):
        asked.append(set(table["image_id"]))
        rows = data.images["image_id"].isin(table["image_id"]).to_numpy()
        ids = data.images["image_id"].to_numpy(dtype=str)[rows]
        return Predictions(ids, values[rows], ids, ids, features=values[rows])

    kept = Kept(Path("features"), {"sha256": "a"}, data.directory / "folds.csv")
    accelerator = start("fp32")
    for rows in (range(3, 9), range(5, 20, 2), range(19, 2, -1)):
        table = data.images.iloc[list(rows)]
        found = kept.features(table, View(), accelerator, run)
        np.testing.assert_array_equal(found, values[sorted(rows)])
    wanted = [set(range(3, 9)), {9, 11, 13, 15, 17, 19}, {10, 12, 14, 16, 18}]
    assert asked == [set(data.images["image_id"].iloc[sorted(rows)]) for rows in wanted]
    paths = {kept.path(View(), "no"), kept.path(View(flip=True), "no"), kept.path(View(), "bf16"),
             replace(kept, body={"sha256": "b"}).path(View(), "no"),
             replace(kept, images=data.directory / "test.csv").path(View(), "no")}  # fmt: skip
    assert len(paths) == 5
