"""Configs: every mistake is an error that says what was meant, and the template cannot drift."""

import re
from pathlib import Path

import pytest

from src.config.read import load_config, parse_config
from src.config.schema import Config
from src.config.template import template
from src.config.tree import dump_config, flatten
from src.config.walk import all_keys
from src.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"train": {"epoch": 3}}, "unknown key `train.epoch`; did you mean `epochs`?"),
        ({"model": {"lr": 3}}, "did you mean `train.lr`?"),
        ({"trian": {}}, "did you mean `train`?"),
        ({"train": {"criterion": {"name": "cross_entropy", "smothing": 1}}}, "`smoothing`?"),
        ({"stage2": [{"head": "crt", "epoch": 1}]}, "did you mean `epochs`?"),
        ({"stage2": [{"head": "ctr"}]}, "did you mean 'crt'?"),
        ({"train": {"optimizer": "adam"}}, "did you mean 'adamw'?"),
        ({"train": {"epochs": "many"}}, "valid integer"),
        ({"train": {"lr": -1}}, "greater than 0"),
        ({"train": 3}, "`train`: found 3"),
        ({"train": {"augment": {"scale": [0.5, 2]}}}, "0 < low <= high <= 1"),
        ({"bins": {"many": 5, "few": 20}}, "few (20) must not be above many (5)"),
        ({"train": {"batch_size": 64, "micro_batch": 48}}, "multiple of micro_batch"),
        ({"train": {"epochs": 5, "warmup_epochs": 5}}, "must be below epochs"),
        ({"train": {"milestones": [0.8, 0.6]}}, "rising fractions"),
        ({"stage2": [{"head": "crt"}, {"head": "crt"}]}, "used twice"),
        ({"stage2": [{"head": "crt", "name": "stage1"}]}, "reserved"),
        ({"posthoc": {"heads": ["lws"]}}, "there are only"),
        ({"ensemble": {"members": ["lws"]}}, "there are only"),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(tree, says):
    with pytest.raises(UserError, match=re.escape(says)):
        parse_config(tree)


def test_overrides_reach_every_level(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("stage2: [{head: crt}, {head: ncm}]\n")
    overrides = ["train.lr=1e-3", "train.augment.hflip=false", "stage2.0.epochs=7", "data.name=n"]
    config = load_config(path, overrides)
    assert (config.train.lr, config.train.augment.hflip) == (1e-3, False)
    assert (config.stage2[0].epochs, config.dataset) == (7, "n")


@pytest.mark.parametrize("item", ["train.epochs", "=3", "stage2.5.epochs=1", "train.lr=[", "a.b=1"])
def test_a_bad_override_is_an_error(tmp_path, item):
    path = tmp_path / "x.yaml"
    path.write_text("stage2: [{head: crt}]\n")
    with pytest.raises(UserError):
        load_config(path, [item])


def test_a_missing_or_broken_file_is_an_error(tmp_path):
    (tmp_path / "birds.yaml").write_text("a: [")
    with pytest.raises(UserError, match="did you mean .*birds.yaml"):
        load_config(tmp_path / "bird.yaml")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(tmp_path / "birds.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="found list"):
        load_config(tmp_path / "list.yaml")


def test_the_template_is_generated_from_the_schema_and_holds_the_defaults():
    path = ROOT / "configs" / "folder_template.yaml"
    assert path.read_text() == template(), "run `python -m src.config.template`"
    assert load_config(path) == Config()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_is_valid(path):
    assert isinstance(load_config(path), Config)


def test_every_key_is_read_somewhere():
    sources = [p for p in (ROOT / "src").rglob("*.py") if p.parent.name != "config"]
    code = "\n".join(p.read_text() for p in sources)
    last = {key: key.rsplit(".", 1)[-1] for key in all_keys()}
    unread = [
        key for key, name in last.items() if f".{name}" not in code and f'"{name}"' not in code
    ]
    assert unread == []


def test_keys_that_only_set_the_speed_are_left_out_of_what_is_compared():
    config = parse_config({"data": {"workers": 7}})
    assert "data.workers" in flatten(dump_config(config))
    assert "data.workers" not in flatten(dump_config(config, volatile=False))
