"""Runs of earlier versions: what they wrote is read in today's words, or stops with a sentence."""

import json

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from src.artifacts.dataset import load_dataset
from src.artifacts.tensors import HEADER
from src.artifacts.work import Work
from src.config.ensemble import Ensemble
from src.config.judge import Judge
from src.config.posthoc import Posthoc
from src.config.read import parse_config
from src.config.tree import plain
from src.config.upgrade import upgraded
from src.errors import UserError
from src.networks.weights import load_network
from tests.fabricate import seal
from tests.training_kit import tiny_config, tiny_dataset, train_tiny

OTHERS = {"kt": {"phi": 0.2}, "paco": {"width": 32}, "ride": {"experts": 3}}
POSTHOC = {"heads": None, "tau_max": 2.0, "grid": 21, "min_gain": 0.0,
           "steps": ["tau_norm", "logit_adjustment", "ncm_fusion", "temperature"]}  # fmt: skip


def test_a_network_and_its_keys_moved_into_one_section():
    old = {"network": "bbn", "bbn": {"alpha": 0.5, "t_max": None}, "head": "linear", **OTHERS}
    found = upgraded({"model": old, "seed": 3})
    assert found["seed"] == 3 and upgraded(found) == found
    assert found["model"] == {
        "network": {"name": "bbn", "alpha": 0.5, "t_max": None}, "head": "linear",
    }  # fmt: skip
    plain = upgraded({"model": {"network": "plain", **OTHERS}})["model"]
    assert plain == {"network": {"name": "plain"}}


def test_steps_took_their_grids_and_combiners_their_rounds():
    found = upgraded({"posthoc": POSTHOC, "metric": "top5"})
    assert Posthoc.model_validate(found["posthoc"]) == Posthoc() and found["metric"] == "top5"
    old = {"members": ["posthoc"], "weights": "greedy", "rounds": 30}
    assert Ensemble.model_validate(upgraded({"ensemble": old})["ensemble"]) == Ensemble()
    assert upgraded(old) == {"members": ["posthoc"], "combiner": {"name": "greedy", "rounds": 30}}
    assert upgraded(old | {"weights": "mean"})["combiner"] == {"name": "mean"}


def test_one_number_for_all_colours_became_one_for_each(tmp_path):
    """Of stage 1, and of a head that was made from augmented views."""
    now = parse_config({"train": {"augment": {"color_jitter": 0.3}}}).train
    new_keys = {"padding"}
    old = {k: v for k, v in plain(now.augment).items() if k not in new_keys} | {"color_jitter": 0.3}
    finished(tmp_path / "fold0", {"train": plain(now, volatile=False) | {"augment": old}})
    assert Work(tmp_path / "fold0", {"train": now}, {}).finished()
    finished(tmp_path / "crt", {"augment": old})
    assert Work(tmp_path / "crt", {"augment": now.augment}, {}).finished()
    other = parse_config({"train": {"augment": {"color_jitter": 0}}}).train.augment
    with pytest.raises(UserError, match="augment.color_jitter.brightness: 0.3 there, 0.0 now"):
        Work(tmp_path / "crt", {"augment": other}, {}).finished()


def finished(directory, settings: dict) -> None:
    work = Work(directory, settings, {})
    directory.mkdir(parents=True, exist_ok=True)
    work.finish([])


def test_finished_training_of_an_earlier_version_is_skipped(tmp_path):
    config = tiny_config({"network": {"name": "kt", "phi": 0.3}})
    old = config.model.model_dump() | {"network": "kt", "kt": {"phi": 0.3}, "bbn": {"alpha": 0.5}}
    finished(tmp_path / "fold0", {"model": old})
    assert Work(tmp_path / "fold0", {"model": config.model}, {}).finished()
    other = parse_config({"model": config.model.model_dump() | {"network": "kt"}}).model
    with pytest.raises(UserError, match="model.network.phi: 0.3 there, 0.2 now"):
        Work(tmp_path / "fold0", {"model": other}, {}).finished()


def test_calibration_by_the_old_rule_stops_and_says_what_differs(tmp_path):
    finished(tmp_path / "posthoc", {"posthoc": POSTHOC, "metric": "top5"})
    now = {"posthoc": Posthoc(), "metric": "top5"}
    old_rule = now | {"judge": Judge(standard_errors=0)}
    assert Work(tmp_path / "posthoc", old_rule, {}).finished()
    with pytest.raises(UserError, match=r"judge.standard_errors: 0.0 there, 2.5 now(.|\n)*overwri"):
        Work(tmp_path / "posthoc", now | {"judge": Judge()}, {}).finished()


def test_weights_of_an_earlier_version_are_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    train = {"second_sampler": "reversed", "epochs": 1, "warmup_epochs": 0}
    directory = train_tiny(tiny_config({"network": {"name": "bbn", "alpha": 0.25}}, train), "old")
    path = directory / "weights.safetensors"
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[HEADER])
    about["model"] |= {"network": "bbn", "bbn": {"alpha": 0.25, "t_max": None}, **OTHERS}
    save_file(load_file(path), path, {HEADER: json.dumps(about)})
    seal(directory)
    network, _ = load_network(path, load_dataset("tiny"))
    assert type(network).__name__ == "BBN" and network.settings.alpha == 0.25
