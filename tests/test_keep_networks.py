"""predict.keep_networks: a fold's own logits, with what 04 chose without that fold."""

from pathlib import Path

import numpy as np
import pytest

import src.inference.passes as module
from src.artifacts.files import read_json, write_json
from src.artifacts.predictions import load_predictions
from src.config.read import parse_config
from src.errors import UserError
from src.inference.predict import predict
from tests.fabricate import count
from tests.training_kit import tiny_config, tiny_dataset, train_tiny

HOME = Path("runs/tiny/exp")


def config(*heads: str):
    tree = tiny_config(train={"epochs": 1, "warmup_epochs": 0}).model_dump(mode="json")
    return parse_config(tree | {"stage2": [], "predict": {"keep_networks": heads}})


def temperature(t: float) -> list[dict]:
    return [{"step": "temperature", "params": {"T": t}}]


def logits(file: str) -> np.ndarray:
    return load_predictions(HOME / "predict" / file, 6).logits


def test_a_folds_posthoc_is_what_was_chosen_on_the_other_folds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    train_tiny(config(), "exp")
    recipe = {"head": "stage1", "steps": temperature(2.0)}
    write_json(HOME / "posthoc" / "posthoc.json", recipe)
    write_json(HOME / "posthoc" / "manifest.json", {"inputs": {}})
    predict(config(), "exp", False)
    assert not (HOME / "predict" / "networks").exists()
    passes = count(monkeypatch, module, "run_network")
    with pytest.raises(UserError, match="without fold 0"):
        predict(config("posthoc"), "exp", False)
    write_json(HOME / "posthoc" / "posthoc.json", recipe | {"per_fold": {"0": temperature(4.0)}})
    predict(config("posthoc", "stage1"), "exp", False)
    files = ["networks/fold0/posthoc.npz", "networks/fold0/stage1.npz"]
    assert set(files) <= read_json(HOME / "predict" / "manifest.json")["outputs"].keys()
    assert not passes  # what the backbone says is kept
    plain = logits("stage1.npz")
    np.testing.assert_array_equal(logits(files[1]), plain)
    np.testing.assert_allclose(logits(files[0]), plain / 4, rtol=1e-6)
    np.testing.assert_allclose(logits("posthoc.npz"), plain / 2, rtol=1e-6)
    assert (load_predictions(HOME / "predict" / files[0], 6).fold == 0).all()
    predict(config(), "exp", False)
    assert "finished already, skipped" in capsys.readouterr().out


def test_a_head_that_there_is_not():
    with pytest.raises(UserError, match="predict.keep_networks names 'crt'"):
        config("crt")
