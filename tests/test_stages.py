"""Stages 2 and 5 on a real network, and stages that were skipped."""

import os
import runpy
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.numpy import save

import src.fusion.network as network_module
import src.fusion.step as step_module
import src.inference.passes as passes_module
import src.rebalance.features as features_module
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, sha256, write_bytes, write_json
from src.artifacts.heads import load_head
from src.artifacts.predictions import Predictions, load_features, load_predictions
from src.config.heads import CRT
from src.config.predict import TTA
from src.errors import UserError
from src.fusion import STEPS
from src.fusion.network import all_logits
from src.fusion.step import Step
from src.fusion.store import save_recipe
from src.inference.passes import Pass
from src.inference.predict import predict
from src.inference.views import tta_views
from src.logits import class_means, head_logits, linear_logits
from src.posthoc.calibrate import posthoc
from src.rebalance.crt import fit_crt
from src.rebalance.features import FeatureSet
from src.rebalance.stage2 import stage2
from src.training.stage1 import stage1
from tests.conftest import ROOT, digits_config
from tests.fabricate import count, seal, some_classes

HOME = Path("runs/digits/exp")


def config(*overrides: str):
    from src.config.read import parse_config

    tree = {"stage2": [{"head": "crt", "epochs": 5, "batch_size": 64}, {"head": "ncm"}]}
    base = digits_config(*overrides).model_dump()
    return parse_config(base | tree)


@pytest.fixture(scope="module")
def trained_once(prepared, tmp_path_factory) -> Path:
    """runs/ with three folds and full trained."""
    home, back = tmp_path_factory.mktemp("trained"), Path.cwd()
    (home / "data").symlink_to(prepared / "data")
    shutil.copytree(prepared / "runs", home / "runs")
    os.chdir(home)
    torch.set_num_threads(1)
    try:
        stage1(config(), "exp", ["0", "1", "2", "full"], False)
    finally:
        os.chdir(back)
    return home / "runs"


@pytest.fixture
def trained(digits, trained_once):
    shutil.copytree(trained_once, "runs", dirs_exist_ok=True)
    return digits


def count_passes(monkeypatch, module) -> list[str]:
    """Every run of a backbone over images from `module` is written into the list."""
    passes: list[str] = []
    run = module.run_network

    def counted(*args, **kwargs):
        passes.append(kwargs["label"])
        return run(*args, **kwargs)

    monkeypatch.setattr(module, "run_network", counted)
    return passes


def test_features_are_computed_once_per_network_and_view(trained, monkeypatch):
    passes = count_passes(monkeypatch, features_module)
    stage2(config(), "exp", False)
    assert len(passes) == 4  # three folds and full
    stage2(config(), "exp", True)
    assert len(passes) == 4
    data = load_dataset("digits")
    ids, found = load_features(next((HOME / "stage2/features/fold1").glob("plain-*.npz")))
    assert ids.tolist() == data.training(1)["image_id"].tolist() and found.shape[1] == 64


def test_augmented_views_are_cached_and_used(trained, monkeypatch):
    passes = count_passes(monkeypatch, features_module)
    tree = config().model_dump() | {"stage2": [{"head": "crt", "views": 2, "epochs": 2}]}
    from src.config.read import parse_config

    stage2(parse_config(tree), "exp", False)
    assert len(passes) == 12
    views = sorted((HOME / "stage2/features/fold0").glob("view*.npz"))
    assert len(views) == 2
    assert not np.array_equal(load_features(views[0])[1], load_features(views[1])[1])


def test_heads_score_held_out_images_with_their_own_folds_network(trained):
    table = stage2(config(), "exp", False)
    assert set(table["classifier"]) == {"crt", "ncm"} and len(table) == 8
    data = load_dataset("digits")
    _, features = load_features(next((HOME / "stage2/features/fold2").glob("plain-*.npz")))
    labels = data.training(2)["label"].to_numpy()
    kind, arrays = load_head(HOME / "stage2/ncm/fold2/head.safetensors")
    np.testing.assert_allclose(arrays["weight"], class_means(features, labels, 10), atol=1e-6)
    oof = load_predictions(HOME / "stage1/fold2/oof.npz", 10)
    found = load_predictions(HOME / "stage2/ncm/fold2/oof.npz", 10)
    np.testing.assert_allclose(found.logits, head_logits(oof.features, arrays, kind), atol=1e-5)


def test_crt_is_a_function_of_its_seed_and_lifts_a_rare_class():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [190, 10])
    f = rng.normal(size=(200, 4)).astype(np.float32)
    f[:, 0] += np.where(labels == 1, 1.5, -0.5)
    data = FeatureSet(f, [], labels, some_classes(2, [0, 1]), ("linear", {}))
    cpu = torch.device("cpu")

    def fit(sampler, seed=0):
        spec = CRT(sampler=sampler, epochs=20, batch_size=50)
        return fit_crt(spec, data, seed, cpu)[1]

    def recall(head):
        z = linear_logits(f[labels == 1], head["weight"], head["bias"])
        return np.mean(z.argmax(1) == 1)

    balanced = fit("class_balanced")
    np.testing.assert_array_equal(balanced["weight"], fit("class_balanced")["weight"])
    assert not np.array_equal(balanced["weight"], fit("class_balanced", 1)["weight"])
    assert recall(balanced) > recall(fit("instance"))


def test_prediction_is_the_mean_over_networks_and_views_of_every_head(trained, monkeypatch):
    passes = count_passes(monkeypatch, passes_module)
    cfg = config("predict.tta.flip=true")
    stage2(cfg, "exp", False)
    posthoc(cfg, "exp")
    paths = predict(cfg, "exp", False)
    assert set(paths) == {"stage1", "crt", "ncm", "posthoc"} and len(passes) == 8
    data = load_dataset("digits")
    found = {name: load_predictions(path, 10) for name, path in paths.items()}
    for part in found.values():
        assert set(part.image_id) == set(data.test["image_id"])
    cached = sorted((HOME / "predict/cache").glob("*.npz"))
    assert len(cached) == 4  # views are merged
    networks = [load_predictions(path, 10) for path in cached]
    mean = np.mean([n.logits for n in networks], 0)
    np.testing.assert_allclose(found["stage1"].logits, mean, atol=1e-5)
    # linear head of the mean features = mean of the views' logits
    kind, arrays = load_head(HOME / "stage1/full/head.safetensors")
    full = networks[[p.name.startswith("full") for p in cached].index(True)]
    np.testing.assert_allclose(head_logits(full.features, arrays, kind), full.logits, atol=1e-3)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="is missing"):
        gone = Mock(side_effect=UserError("the image is missing"))
        patch.setattr(passes_module, "run_network", gone)
        predict(cfg, "exp", True)
    assert all(load_predictions(path, 10) for path in paths.values())  # the old stay
    predict(cfg, "exp", True)  # --overwrite of the whole stage computes anew
    assert len(passes) == 16 and not (HOME / ".predict.new").exists()


def test_a_new_calibration_costs_no_second_pass(trained, monkeypatch):
    passes = count_passes(monkeypatch, passes_module)
    cfg = config()
    stage2(cfg, "exp", False)
    posthoc(cfg, "exp")
    predict(cfg, "exp", False)
    before = len(passes)
    path = HOME / "posthoc/posthoc.json"
    path.write_text(path.read_text() + "\n")
    seal(path.parent)
    predict(cfg, "exp", False)
    assert len(passes) == before


class Shift(Step):
    @staticmethod
    def apply(state, params):
        return state.logits + params["shift"]


def test_05_applies_recipes_of_earlier_versions_and_those_with_arrays(trained, monkeypatch):
    monkeypatch.setitem(STEPS, "shift", Shift)
    cfg = config()
    stage2(cfg, "exp", False)
    posthoc(cfg, "exp")
    old = {"head": "crt", "steps": [{"step": "temperature", "params": {"T": 2.0}}], "metric": "x"}
    write_json(HOME / "posthoc/posthoc.json", old)
    seal(HOME / "posthoc")

    def logits(name: str) -> np.ndarray:
        return load_predictions(predict(cfg, "exp", False)[name], 10).logits

    np.testing.assert_allclose(logits("posthoc"), logits("crt") / 2, rtol=1e-5)
    assert "posthoc.npz" not in read_json(HOME / "predict/manifest.json")["inputs"]
    shift = np.arange(10, dtype=np.float32)
    steps = [{"step": "shift", "params": {"shift": shift}}]
    save_recipe(HOME / "posthoc", {"head": "stage1", "steps": steps})
    seal(HOME / "posthoc")
    np.testing.assert_allclose(logits("posthoc"), logits("stage1") + shift, atol=1e-4)
    inputs = read_json(HOME / "predict/manifest.json")["inputs"]
    assert inputs["posthoc.npz"] == sha256(HOME / "posthoc/posthoc.npz")
    (HOME / "posthoc/posthoc.npz").unlink()
    with pytest.raises(UserError, match="the array steps.0.params.shift .* is missing; run 04"):
        logits("posthoc")


def test_05_computes_the_logits_of_each_head_once(monkeypatch):
    rng = np.random.default_rng(0)
    f, w = rng.normal(size=(20, 4)).astype(np.float32), rng.normal(size=(10, 4))
    heads = {n: ("linear", {"weight": w, "bias": w[:, 0]}) for n in ("stage1", "crt", "ncm")}
    z, blank = np.ones((20, 10), np.float32), np.full(20, -1)
    found = Predictions(np.arange(20).astype(str), z, blank, blank, f)
    calls = [count(monkeypatch, m, "head_logits") for m in (network_module, step_module)]
    steps = [{"step": "ncm_fusion", "params": {"w": 0.5, "head": "ncm"}}]
    recipe, counts = {"head": "crt", "steps": steps}, np.arange(10) + 1
    logits = all_logits(found, {}, heads, recipe, counts)
    assert set(logits) == {"stage1", "crt", "ncm", "posthoc"} and sum(map(len, calls)) == 2
    assert not np.array_equal(logits["posthoc"], logits["crt"])


def test_views_are_scales_times_crops_times_flips():
    assert len(tta_views(TTA(flip=True, crops=5, scales=(1.0, 1.2)))) == 20
    first = tta_views(TTA(flip=True))[0]
    assert not first.flip and first.corner == (0.5, 0.5) and first.scale == 1.0


def test_a_prediction_run_goes_on_after_the_views_that_are_done(trained, monkeypatch):
    cfg = config("predict.tta.flip=true")
    stage2(cfg, "exp", False)
    posthoc(cfg, "exp")
    whole = {n: sha256(p) for n, p in predict(cfg, "exp", False).items()}
    passes = count_passes(monkeypatch, passes_module)
    run = passes_module.run_network

    def dying(*args, **kwargs):
        if len(passes) == 3:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(passes_module, "run_network", dying)
        predict(cfg, "exp", True)
    passes.clear()
    again = {n: sha256(p) for n, p in predict(cfg, "exp", False).items()}
    assert len(passes) == 5 and again == whole


@pytest.mark.parametrize("dawdles", ["at the start", "before it reads the views"])
def test_no_process_removes_views_that_another_has_yet_to_read(digits, monkeypatch, dawdles):
    """Two processes as two threads; the second is slow. All views are there, as after a kill."""
    data, stage1_home, cache = load_dataset("digits"), HOME / "stage1/fold0", HOME / "predict/cache"
    write_bytes(stage1_home / "weights.safetensors", save({}))
    cfg, ids = config("predict.tta.flip=true"), data.test["image_id"].to_numpy(str)
    part = Predictions(ids, np.eye(10)[np.arange(len(ids)) % 10], *np.full((2, len(ids)), -1))
    part = replace(part, features=np.ones((len(ids), 2)))
    together, read = threading.Barrier(2, timeout=5), passes_module.load_predictions

    def slowly(path, num_classes):
        if threading.current_thread().name == "1" and dawdles != "at the start":
            time.sleep(0.3)
        return read(path, num_classes)

    monkeypatch.setattr(passes_module, "load_predictions", slowly)
    monkeypatch.setattr("src.networks.weights.load_network", lambda *_: (torch.nn.Identity(), None))
    monkeypatch.setattr(passes_module, "EvalTransform", lambda *_: None)
    monkeypatch.setattr(passes_module, "run_network", lambda *_, **__: part)

    def process(rank: int) -> np.ndarray:
        threading.current_thread().name = str(rank)
        if rank and dawdles == "at the start":
            time.sleep(0.3)
        one = SimpleNamespace(
            is_main_process=rank == 0, device="cpu", wait_for_everyone=together.wait
        )
        return passes_module.network_predictions(
            cfg, data, Pass(stage1_home), cache.parent, one
        ).logits

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # before they are merged
        alone = SimpleNamespace(is_main_process=True, device="cpu", wait_for_everyone=lambda: None)
        patch.setattr(passes_module, "mean_of", Mock(side_effect=KeyboardInterrupt))
        passes_module.network_predictions(cfg, data, Pass(stage1_home), cache.parent, alone)
    assert len(list(cache.glob("*.view.npz"))) == 2
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(process, range(2))
    np.testing.assert_array_equal(first, second)
    assert not list(cache.glob("*.view.npz"))


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("02_train_stage1.py", "01_prepare_folds.py"),
        ("03_train_stage2.py", "01_prepare_folds.py"),
        ("04_posthoc_calibrate.py", "01_prepare_folds.py"),
        ("05_predict.py", "01_prepare_folds.py"),
        ("06_ensemble.py", "01_prepare_folds.py"),
    ],
)
def test_a_script_without_its_earlier_stage_names_the_script_to_run(
    tmp_path, monkeypatch, capsys, script, names
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, "--config", str(ROOT / "configs" / "digits.yaml")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and names in said
    assert f"(working directory {tmp_path})" in " ".join(said.split())


def test_each_stage_names_the_one_before_it(trained):
    for stage in (stage2, predict):
        with pytest.raises(UserError, match="02_train_stage1.py"):
            stage(config(), "another", False)
    with pytest.raises(UserError, match="03_train_stage2.py"):
        predict(config(), "exp", False)
    stage2(config(), "exp", False)
    with pytest.raises(UserError, match="04_posthoc_calibrate.py"):
        predict(config(), "exp", False)
