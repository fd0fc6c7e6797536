"""What a network was trained with counts for all that follows, whatever the YAML says by then."""

import pytest

from src.artifacts.trained import trained_config, write_config
from src.config.read import parse_config
from src.errors import UserError


def a_config(**train):
    return parse_config({"train": {"epochs": 7, **train}, "seed": 3})


def test_the_yaml_at_hand_counts_where_nothing_was_trained(tmp_path):
    config = a_config(lr=0.2)
    assert trained_config(config, tmp_path) == config


def test_what_02_trained_with_counts_and_the_difference_is_said(tmp_path, capsys):
    write_config(tmp_path, a_config(lr=0.1), {})
    now = parse_config({"train": {"epochs": 7, "lr": 0.2}, "metric": "top5", "stage2": ["ncm"]})
    found = trained_config(now, tmp_path)
    assert (found.train.lr, found.seed) == (0.1, 3)
    assert (found.metric, found.stage2) == ("top5", now.stage2)  # what later stages choose
    said = capsys.readouterr().out
    assert "config.yaml: trained with seed = 3 (now 0), train.lr = 0.1 (now 0.2)" in said


def test_nothing_is_said_where_both_agree(tmp_path, capsys):
    write_config(tmp_path, a_config(), {})
    assert trained_config(a_config(), tmp_path) == a_config()
    assert capsys.readouterr().out == ""


def test_speed_is_a_matter_of_the_machine_at_hand(tmp_path, capsys):
    write_config(tmp_path, a_config(eval_batch_size=512), {})
    assert trained_config(a_config(eval_batch_size=8), tmp_path).train.eval_batch_size == 8
    assert capsys.readouterr().out == ""


def test_searched_values_are_meant_to_differ(tmp_path, capsys):
    write_config(tmp_path, a_config(weight_decay=0.3), {"train.weight_decay": 0.3})
    assert "# from search/best.json" in (tmp_path / "config.yaml").read_text()
    assert trained_config(a_config(), tmp_path).train.weight_decay == 0.3
    assert capsys.readouterr().out == ""


def test_a_config_of_an_earlier_version_is_understood(tmp_path):
    text = "model: {network: bbn, bbn: {alpha: 0.5}, kt: {phi: 0.2}}\n"
    (tmp_path / "config.yaml").write_text(text + "train: {second_sampler: reversed}\n")
    network = trained_config(a_config(), tmp_path).model.network
    assert (network.name, network.alpha) == ("bbn", 0.5)


@pytest.mark.parametrize("text", ["a: [", "- 1", "train: {lr: fast}", "model: {netwrk: bbn}"])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="config.yaml"):
        trained_config(a_config(), tmp_path)
