"""`auto`: the data decides a key once, says why, and what was decided then stays."""

from dataclasses import replace

import pytest

import src.training.decide as decide
from src.artifacts.dataset import load_dataset
from src.artifacts.trained import trained_config
from src.artifacts.work import RUNS
from src.config.auto import RULES, Facts
from src.config.read import load_config, parse_config
from src.config.tree import dump_config
from src.errors import UserError
from src.training.decide import facts_of
from src.training.stage1 import stage1
from tests.training_kit import COUNTS, DATASET, tiny_config, tiny_dataset

FACTS = Facts(1129, 100, 10.0, 200, True, True)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny_dataset()


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train: {epochs: auto, lr: 0.2, criterion: auto}\nmodel: {image_size: auto}\n")
    return path


def test_auto_is_short_for_the_list_of_keys(mine):
    config = load_config(mine)
    assert set(config.auto) == {"train.epochs", "train.criterion", "model.image_size"}
    assert config.train.lr == 0.2
    assert config == parse_config({"train": {"lr": 0.2}, "auto": config.auto})


def test_a_value_on_the_command_line_is_a_value(mine):
    config = load_config(mine, ["train.epochs=3", "train.batch_size=auto"])
    assert "train.epochs" not in config.auto and config.train.epochs == 3
    assert "train.batch_size" in config.auto


def test_keys_without_a_rule_are_refused(mine):
    with pytest.raises(UserError, match="train.lr.*auto"):
        load_config(mine, ["train.lr=auto"])
    with pytest.raises(UserError, match=r"auto.*train\.lr.*model.image_size"):
        load_config(mine, ["auto=[train.lr]"])
    with pytest.raises(UserError, match="a soup trains nothing"):
        load_config(mine, ["soup.members=[a, b]"])


@pytest.mark.parametrize("key", RULES)
def test_every_rule_gives_what_its_key_takes_and_one_line(key):
    for images, classes in ((30, 10), (1129, 100), (50_000, 10), (2_700_000, 10_000)):
        for side in (8, 32, 100, 227, 4000):
            for balanced in (True, False):
                facts = Facts(images, classes, 50.0, side, balanced, not balanced)
                value, why = RULES[key](facts)
                section, name = key.split(".")
                parse_config({section: {name: value}})
                assert why and "\n" not in why


def test_rules_follow_the_data():
    rule = {key: lambda f, k=key: RULES[k](f)[0] for key in RULES}
    often = replace(FACTS, images=100 * FACTS.images)
    few = replace(FACTS, images=200)
    assert rule["train.epochs"](FACTS) == rule["train.epochs"](often) == 12
    assert rule["train.epochs"](few) == 27  # in batches of 16, 324 steps
    assert rule["train.epochs"](replace(FACTS, pretrained=False)) > rule["train.epochs"](FACTS)
    assert rule["train.batch_size"](often) > rule["train.batch_size"](FACTS)
    assert rule["train.criterion"](FACTS) == {"name": "balanced_softmax"}
    assert rule["train.criterion"](replace(FACTS, balanced=False)) == {"name": "cross_entropy"}
    sizes = [rule["model.image_size"](replace(FACTS, side=s)) for s in (32, 100, 227, 4000)]
    assert sizes == sorted(sizes) and sizes[0] == 32 and sizes[-1] == 224


def test_facts_are_those_of_the_training_images(tiny):
    facts = facts_of(tiny_config(), tiny)
    assert facts == Facts(sum(COUNTS), len(COUNTS), max(COUNTS) / min(COUNTS), 16, True, False)
    assert not facts_of(tiny_config(metric="accuracy"), tiny).balanced
    assert facts_of(tiny_config(metric="accuracy", target_prior="balanced"), tiny).balanced


def test_a_run_says_what_was_decided_and_goes_on_with_it(tiny, monkeypatch, capsys):
    home = RUNS / DATASET / "mine"
    config = tiny_config(auto=["train.epochs", "train.criterion"])
    monkeypatch.setattr(decide, "RULES", RULES | {"train.epochs": lambda f: (1, "a whim")})
    stage1(config, "mine", ["0"], overwrite=False)
    assert "train.epochs = 1 (auto: a whim)" in capsys.readouterr().out
    written = (home / "config.yaml").read_text()
    assert "# train.epochs = 1 (auto: a whim)" in written
    kept = trained_config(config, home)
    assert capsys.readouterr().out == ""  # nothing differs from what the YAML asks for
    assert (kept.train.epochs, kept.train.criterion.name) == (1, "balanced_softmax")

    monkeypatch.setattr(decide, "RULES", RULES | {"train.epochs": lambda f: (2, "another")})
    stage1(config, "mine", ["1"], overwrite=False)
    assert "train.epochs = 1 (auto: as " in capsys.readouterr().out
    stage1(config, "mine", ["0", "1"], overwrite=True)
    assert "train.epochs = 2 (auto: another)" in capsys.readouterr().out
    assert trained_config(config, home).train.epochs == 2


def test_what_was_decided_is_what_plain_values_give(tiny):
    config = tiny_config(auto=["train.epochs", "model.image_size"])
    found, lines = decide.decided(config, RUNS / "nowhere", load_dataset(DATASET), anew=False)
    assert found.auto == () and len(lines) == 2
    plain = dump_config(config) | {"auto": []}
    plain["train"]["epochs"] = found.train.epochs
    plain["model"]["image_size"] = found.model.image_size
    assert found == parse_config(plain)
