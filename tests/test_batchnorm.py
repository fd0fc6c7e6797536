"""`bn: train`: only the statistics change, 04 and 05 use the changed network, and it is refused
where it means nothing."""

import numpy as np
import pytest
import torch

from src.artifacts.files import read_arrays, read_json
from src.artifacts.heads import load_head
from src.artifacts.predictions import load_predictions
from src.config.read import parse_config
from src.data.transforms import EvalTransform
from src.errors import UserError
from src.inference.predict import predict
from src.logits import head_logits
from src.networks.batchnorm import FILE, load_statistics, statistics, train_statistics
from src.networks.forward import run_network
from src.networks.weights import load_network
from src.posthoc.calibrate import posthoc
from src.rebalance.stage2 import stage2
from src.runtime import start
from src.training.stage1 import stage1
from tests.training_kit import tiny_config, tiny_dataset

LIVE = {"head": "crt", "name": "live", "bn": "train", "epochs": 2, "batch_size": 8}
SCALED = LIVE | {"head": "lws", "name": "scaled"}


def config(**sections):
    tree = tiny_config(train={"epochs": 2}).model_dump(mode="json")
    heads = [LIVE, SCALED, {"head": "crt", "epochs": 2}, {"head": "ncm"}]
    return parse_config(tree | {"stage2": heads, "predict": {"tta": {"flip": False}}} | sections)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The tiny data set with both folds and all heads trained, in a directory of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("live"))
        data = tiny_dataset()
        stage1(config(), "exp", [], False)
        rows = stage2(config(), "exp", False)
        assert set(rows["classifier"]) == {"live", "scaled", "crt", "ncm"}
        yield data, data.directory.parent / "exp"


@pytest.mark.parametrize("name", ["live", "scaled"])
def test_a_live_head_is_the_network_with_its_own_statistics(trained, name):
    data, home = trained
    network, prep = load_network(home / "stage1" / "fold0" / "weights.safetensors", data)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    load_statistics(home / "stage2" / name / "fold0" / FILE, network)
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and changed <= set(statistics(network))
    found = run_network(
        network, data.held_out(0), EvalTransform(prep), prep, start("fp32"), batch_size=8, workers=0
    )
    kind, arrays = load_head(home / "stage2" / name / "fold0" / "head.safetensors")
    oof = load_predictions(home / "stage2" / name / "fold0" / "oof.npz", data.num_classes)
    expected = head_logits(found.features, arrays, kind)
    np.testing.assert_allclose(oof.logits, expected, rtol=1e-4, atol=1e-5)
    assert not (home / "stage2" / "crt" / "fold0" / FILE).exists()


def test_live_scales_are_of_stage_1s_own_classifier(trained):
    _, home = trained
    _, stage1 = load_head(home / "stage1" / "fold0" / "head.safetensors")
    _, found = load_head(home / "stage2" / "scaled" / "fold0" / "head.safetensors")
    scale = (found["weight"] / stage1["weight"]).mean(1)
    np.testing.assert_allclose(found["weight"], scale[:, None] * stage1["weight"], rtol=1e-3)
    assert np.abs(scale - 1).max() > 1e-3


def test_it_is_a_function_of_the_seed(trained):
    _, home = trained
    names = ("head.safetensors", FILE, "oof.npz")
    path = home / "stage2" / "live" / "fold1"
    first = [(path / name).read_bytes() for name in names]
    stage2(config(), "exp", True)
    assert first == [(path / name).read_bytes() for name in names]


def test_05_runs_the_changed_network_also_below_the_recipe(trained):
    data, home = trained
    settings = config(posthoc={"heads": ["live"], "steps": ["temperature"]})
    posthoc(settings, "exp")
    paths = predict(settings, "exp", False)
    expected, scaled = [], []
    recipe = read_json(home / "posthoc" / "posthoc.json")
    assert recipe["head"] == "live"
    for fold in ("fold0", "fold1"):
        network, prep = load_network(home / "stage1" / fold / "weights.safetensors", data)
        load_statistics(home / "stage2" / "live" / fold / FILE, network)
        found = run_network(
            network, data.test, EvalTransform(prep), prep, start("fp32"), batch_size=8, workers=0
        )
        kind, arrays = load_head(home / "stage2" / "live" / fold / "head.safetensors")
        expected.append(head_logits(found.features, arrays, kind))
        heat = [s["params"]["T"] for s in recipe["steps"]] or [1.0]
        scaled.append(expected[-1] / heat[0])
    for name, mean in (("live", np.mean(expected, 0)), ("posthoc", np.mean(scaled, 0))):
        logits = read_arrays(paths[name])["logits"]
        np.testing.assert_allclose(logits, mean, rtol=1e-3, atol=1e-4)
    plain = read_arrays(paths["crt"])["logits"]
    assert np.abs(plain - np.mean(expected, 0)).max() > 1e-3


def test_dropout_stays_off_and_a_backbone_without_batch_norm_is_refused():
    body = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5))
    train_statistics(body)
    assert body[0].training and not body[1].training
    with pytest.raises(UserError, match="needs a backbone with batch norm"):
        train_statistics(torch.nn.Sequential(torch.nn.LayerNorm(3)))


def test_statistics_of_another_network_are_refused(tmp_path):
    from src.networks.batchnorm import save_statistics

    path = save_statistics(tmp_path / FILE, torch.nn.Sequential(torch.nn.BatchNorm2d(3)))
    with pytest.raises(UserError, match="of another network"):
        load_statistics(path, torch.nn.Sequential(torch.nn.Identity(), torch.nn.BatchNorm2d(3)))
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        load_statistics(path, torch.nn.BatchNorm2d(3))


@pytest.mark.parametrize("head", [LIVE, SCALED], ids=lambda h: h["name"])
def test_views_are_refused_with_the_reason(head):
    with pytest.raises(UserError, match="draws new views in every epoch"):
        parse_config({"stage2": [head | {"views": 2}]})
