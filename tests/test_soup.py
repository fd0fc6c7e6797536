"""Means of weights: soups of experiments, averages of last epochs, batch norm, refusals."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import src.training.fit as fit_module
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, write_json
from src.artifacts.marks import pseudo_labelled
from src.artifacts.predictions import load_predictions
from src.artifacts.work import MANIFEST
from src.config.read import with_values
from src.data.cache import read_image
from src.data.transforms import EvalTransform
from src.errors import UserError
from src.inference.predict import predict
from src.networks.average import Average, estimate_statistics, moved_layers
from src.networks.forward import run_network
from src.networks.weights import load_network
from src.posthoc.calibrate import posthoc
from src.rebalance.stage2 import stage2
from src.runtime import start
from src.training.kitchen import Kitchen
from src.training.soup import chosen, soup
from src.training.stage1 import stage1
from tests.fabricate import seal
from tests.training_kit import resumes_exactly, tiny_config, tiny_dataset, train_tiny

TINY = Path("runs/tiny")
ROOT = Path(__file__).parents[1]
SHORT = {"epochs": 1, "warmup_epochs": 0}


def soup_config(members=("a", "b"), mode="uniform", batchnorm=True, **values):
    keys = {"members": list(members), "mode": mode, "batchnorm": batchnorm}
    return with_values(tiny_config(train=SHORT), {"soup": keys, **values}, "test")


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory) -> Path:
    """Experiments a and b of another seed, both folds."""
    home, back = tmp_path_factory.mktemp("soup"), Path.cwd()
    os.chdir(home)
    try:
        tiny_dataset()
        for name, seed in (("a", 0), ("b", 1)):
            stage1(with_values(tiny_config(train=SHORT), {"seed": seed}, ""), name, [], False)
    finally:
        os.chdir(back)
    return home


@pytest.fixture
def tiny(trained_once, tmp_path, monkeypatch) -> Path:
    """A copy of them in a working directory of its own."""
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(experiment: str, fold: int = 0) -> dict[str, torch.Tensor]:
    return load_file(TINY / experiment / f"stage1/fold{fold}/weights.safetensors")


def oof(experiment: str, fold: int = 0) -> np.ndarray:
    return load_predictions(TINY / experiment / f"stage1/fold{fold}/oof.npz", 6).logits


# ---- averages ----------------------------------------------------------------------------------


def test_a_mean_of_states_by_hand():
    mean = Average()
    for value, counter in ((1.0, 3), (2.0, 5), (6.0, 7)):
        mean.add({"w": torch.tensor([value, -value]), "n": torch.tensor(counter)})
    assert mean.mean()["w"].tolist() == [3.0, -3.0] and mean.mean()["n"] == 3
    odd = torch.rand(1000, generator=torch.Generator().manual_seed(0)) / 3
    equal = Average()
    for _ in range(7):
        equal.add({"w": odd})
    assert torch.equal(equal.mean()["w"].float(), odd)


def test_statistics_are_means_over_batches_of_the_layers_asked_for():
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm1d(3, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    before = network[2].running_mean.clone()
    batches = [torch.randn(8, 3) * 2 + 1 for _ in range(5)]
    estimate_statistics(network, [network[0]], batches)
    mean = torch.stack([b.mean(0) for b in batches]).mean(0)
    spread = torch.stack([b.var(0) for b in batches]).mean(0)
    torch.testing.assert_close(network[0].running_mean, mean)
    torch.testing.assert_close(network[0].running_var, spread)
    assert torch.equal(network[2].running_mean, before)
    assert network[0].momentum == 0.3 and not any(m.training for m in network.modules())


def test_layers_with_the_same_statistics_have_not_moved():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    other = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network[1].running_var += 1
    assert moved_layers(network, other) == [network[1]]


# ---- soups -------------------------------------------------------------------------------------


def test_a_soup_of_one_network_twice_is_that_network(tiny):
    shutil.copytree(TINY / "a", TINY / "twin")
    for mode in ("uniform", "greedy"):
        rows = soup(soup_config(("a", "twin"), mode), mode, [], False)
        assert rows["fold"].tolist() == ["fold0", "fold1"]
        for fold in (0, 1):
            own, theirs = weights(mode, fold), weights("a", fold)
            assert own.keys() == theirs.keys()
            assert all(torch.equal(own[name], theirs[name]) for name in own)
            np.testing.assert_allclose(oof(mode, fold), oof("a", fold), atol=1e-5)


def test_a_uniform_soup_is_the_mean_and_its_batch_norm_is_that_of_the_mean_network(tiny):
    soup(soup_config(batchnorm=False), "plain", ["0"], False)
    soup(soup_config(), "fresh", ["0"], False)
    a, b, plain, fresh = (weights(name) for name in ("a", "b", "plain", "fresh"))
    for name, tensor in plain.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (a[name] + b[name]) / 2)
            assert torch.equal(tensor, fresh[name]) != ("running" in name)
    data, config = load_dataset("tiny"), soup_config()
    network, prep = load_network(TINY / "fresh/stage1/fold0/weights.safetensors", data)
    images = data.training(0)
    order = np.random.default_rng(0).permutation(len(images))
    transform = EvalTransform(prep)
    pixels = np.stack([transform(read_image(p), (0, 0)) for p in images["path"].iloc[order]])
    inputs = prep.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    first = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    conv = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    means = [conv(part).mean((0, 2, 3)) for part in inputs.split(8) if len(part) == 8]
    torch.testing.assert_close(first.running_mean, torch.stack(means).mean(0), atol=1e-4, rtol=1e-3)
    held_out = data.held_out(0)
    found = run_network(network, held_out, transform, prep, start("fp32"), batch_size=8, workers=0)
    np.testing.assert_allclose(found.logits, oof("fresh"), atol=1e-4)
    again = soup(config, "fresh", ["0"], False)  # finished: skipped
    facts = read_json(TINY / "fresh/stage1/fold0" / MANIFEST)
    assert again["accuracy"][0] == facts["metrics"]["accuracy"] and facts["soup"] == ["a", "b"]


def spoil(experiment: str) -> None:
    """Networks that know nothing, and held-out logits that say so."""
    for fold in (0, 1):
        directory = TINY / experiment / f"stage1/fold{fold}"
        path = directory / "weights.safetensors"
        with safe_open(path, "pt") as file:
            about = file.metadata()
        state = {k: -v if "classifier" in k else v for k, v in load_file(path).items()}
        save_file(state, path, about)
        found = load_predictions(directory / "oof.npz", 6)
        found.with_logits(-np.eye(6, dtype=np.float32)[found.label]).save(directory / "oof.npz")
        seal(directory)


def test_a_greedy_soup_leaves_out_what_makes_it_worse(tiny):
    for fold in (0, 1):  # the first is sure and right, so that nothing can be better
        directory = TINY / f"b/stage1/fold{fold}"
        found = load_predictions(directory / "oof.npz", 6)
        found.with_logits(np.eye(6, dtype=np.float32)[found.label]).save(directory / "oof.npz")
        seal(directory)
    spoil("a")
    soup(soup_config(mode="greedy"), "greedy", [], False)
    facts = read_json(TINY / "greedy/stage1/fold0" / MANIFEST)
    assert facts["soup"] == ["b"]
    own, theirs = weights("greedy"), weights("b")
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_a_greedy_soup_is_chosen_on_what_the_other_folds_hold_out(tiny):
    kitchen = Kitchen(soup_config(mode="greedy"), load_dataset("tiny"), start("fp32"))
    for fold in (0, 1):
        kitchen.outcomes.clear()
        assert {name for name, _ in chosen(kitchen, fold)[0]} <= {"a", "b"}
        assert len(kitchen.outcomes) == 3 and {f for _, f in kitchen.outcomes} == {1 - fold}
    kitchen.outcomes.clear()
    chosen(kitchen, None)  # `full` holds nothing out
    assert {f for _, f in kitchen.outcomes} == {0, 1}


def test_later_stages_go_on_from_a_soup_and_its_optimism_is_its_members(tiny):
    path = TINY / "b/stage1/fold0" / MANIFEST
    write_json(path, read_json(path) | {"select": "best", "searched": {"train.lr": 0.1}}
               | {"pseudo": {"images": 7, "experiment": "a", "head": "crt"}})  # fmt: skip
    values = {"stage2": ["ncm"], "posthoc": {"steps": ["temperature"]}, "predict.evidence": 0}
    config = soup_config(**values)
    soup(config, "mixed", [], False)
    facts = read_json(TINY / "mixed/stage1/fold0" / MANIFEST)
    assert facts["select"] == "best" and facts["searched"] == {"train.lr": 0.1}
    assert "7 pseudo-labelled test images" in pseudo_labelled(TINY / "mixed")
    stage2(config, "mixed", False)
    posthoc(config, "mixed")
    assert all(path.is_file() for path in predict(config, "mixed", False).values())


# ---- what is refused ---------------------------------------------------------------------------


def test_networks_of_other_shapes_are_refused_with_the_first_tensor_that_differs(tiny):
    shutil.rmtree(TINY / "b")
    model = {"neck": {"width": 8}}
    train_tiny(tiny_config(model, train=SHORT), "b")
    with pytest.raises(UserError, match=r"classifier.bias|classifier.weight is \[6, 64\] in .*a/"):
        soup(soup_config(), "mixed", ["0"], False)


def test_a_network_that_is_not_the_configs_is_refused(tiny):
    config = soup_config(**{"model.head": "cosine"})
    with pytest.raises(UserError, match="model.head is 'linear' there and 'cosine' here"):
        soup(config, "mixed", ["0"], False)
    soup(soup_config(**{"model.dropout": 0.5}), "mixed", ["0"], False)  # only a matter of training


def test_missing_members_and_other_folds_name_the_command(tiny):
    with pytest.raises(UserError, match=r"02_train_stage1.py --folds full \(of a\)"):
        soup(soup_config(), "mixed", ["full"], False)
    shutil.rmtree(TINY / "b/stage1/fold1")
    with pytest.raises(UserError, match=r"02_train_stage1.py --folds 1 \(of b\)"):
        soup(soup_config(mode="greedy"), "mixed", ["0"], False)  # fold 1 decides for fold 0
    assert not (TINY / "mixed").exists()
    path = TINY / "b/stage1/fold0" / MANIFEST
    write_json(path, read_json(path) | {"inputs": {"folds.csv": "another"}})
    with pytest.raises(UserError, match="made from a different folds.csv"):
        soup(soup_config(), "mixed", ["0"], False)


def test_a_soup_of_other_settings_or_members_that_changed_is_not_replaced_unasked(tiny):
    soup(soup_config(), "mixed", ["0"], False)
    with pytest.raises(UserError, match="soup.mode: 'uniform' there, 'greedy' now"):
        soup(soup_config(mode="greedy"), "mixed", ["0"], False)
    spoil("b")
    with pytest.raises(UserError, match="made from another 'b/fold0'"):
        soup(soup_config(), "mixed", ["0"], False)
    with pytest.raises(UserError, match="mixed is the soup itself"):
        soup(soup_config(("a", "mixed")), "mixed", ["0"], True)


@pytest.mark.parametrize("members", [[], ["a"], ["a", "a"]])
def test_a_soup_has_two_members_or_more(members):
    with pytest.raises(UserError, match="two experiments or more, each once"):
        soup_config(members)


def test_a_soup_has_no_settings_to_search(tmp_path):
    (tmp_path / "c.yaml").write_text("{data: {root: tiny}, soup: {members: [a, b]}}")
    command = [sys.executable, ROOT / "02_train_stage1.py", "--config", "c.yaml", "--search"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2 and "a soup is not trained" in found.stderr


# ---- the last epochs of a training -------------------------------------------------------------


def test_the_last_epochs_are_averaged_and_batch_norm_is_estimated_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    seen, save = [], fit_module.save_checkpoint

    def spy(where, state):
        own = state["objective"]
        seen.append({k.removeprefix("network."): v.clone() for k, v in own.items()})
        save(where, state)

    monkeypatch.setattr(fit_module, "save_checkpoint", spy)
    train_tiny(tiny_config(train={"average_last": 2}), "exp")
    found = weights("exp")
    for name, tensor in found.items():
        if tensor.is_floating_point():
            mean = (seen[1][name] + seen[2][name]) / 2
            assert torch.allclose(tensor, mean, atol=1e-6) != ("running" in name), name
    network, prep = load_network(
        TINY / "exp/stage1/fold0/weights.safetensors", load_dataset("tiny")
    )
    held_out = load_dataset("tiny").held_out(0)
    again = run_network(
        network, held_out, EvalTransform(prep), prep, start("fp32"), batch_size=8, workers=0
    )
    np.testing.assert_allclose(again.logits, oof("exp"), atol=1e-4)


def test_a_killed_training_goes_on_to_the_same_average(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    resumes_exactly(tiny_config(train={"average_last": 2, "ema": 0.9}), monkeypatch)


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"average_last": 4}, "must not be above epochs"),
        ({"average_last": 2, "select": "best"}, "keeps a single one"),
    ],
)
def test_what_cannot_be_averaged_is_named(train, says):
    with pytest.raises(UserError, match=says):
        tiny_config(train=train)
