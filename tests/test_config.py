"""Configs: every mistake is an error that says what was meant, and the template cannot drift."""

import re
import time
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from src.config.read import load_config, parse_config
from src.config.schema import Config
from src.config.section import Section, named
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
        ({"train": {"optimizer": "adamww"}}, "did you mean 'adamw'?"),
        ({"train": {"epochs": "many"}}, "valid integer"),
        ({"train": {"lr": -1}}, "greater than 0"),
        ({"train": 3}, "`train`: found 3"),
        ({"train": {"augment": {"scale": [0.5, 2]}}}, "0 < low <= high <= 1"),
        ({"bins": {"many": 5, "few": 20}}, "few (20) must not be above many (5)"),
        ({"train": {"batch_size": 64, "micro_batch": 48}}, "multiple of micro_batch"),
        ({"train": {"epochs": 0}}, "a random head knows no class"),
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


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
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


def test_a_union_of_named_sections_takes_a_bare_name_with_one_member_or_more():
    class Plain(Section):
        name: Literal["plain"] = "plain"
        width: int = 1

    class Odd(Section):
        name: Literal["odd"] = "odd"

    for sections in ((Plain,), (Plain, Odd)):
        read = TypeAdapter(named(*sections)).validate_python
        assert read("plain") == read({"name": "plain"}) == read(Plain()) == Plain()
        with pytest.raises(ValidationError):
            read("plane")


def test_a_key_that_is_gone_says_where_it_went():
    class Moved(Section):
        gone: ClassVar[dict[str, str]] = {"old": "it is new, elsewhere"}

    with pytest.raises(ValidationError, match="`old` is no key any more: it is new, elsewhere"):
        Moved.model_validate({"old": 1})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: !!int abc", "'abc' cannot be read as int"),
        ("seed: !!int ''", "'' cannot be read as int"),
        ("train: {lr: !!float x}", "'x' cannot be read as float"),
        ("train: {nesterov: !!bool maybe}", "'maybe' cannot be read as bool"),
        ("data: {name: !!binary aGk=}", "!!binary has no meaning in a config"),
        ("data: {name: !!timestamp 2025-13-45}", "!!timestamp has no meaning"),
        ("train: 2025-13-45", "`train`: found '2025-13-45'"),
        ("seed: 2025-13-45 12:00:00", "`seed`: found '2025-13-45 12:00:00'"),
        ("seed: &a [*a]", "an anchor holds itself"),
        ("train: &a {lr: *a}", "an anchor holds itself"),
        ("<<: &a {<<: *a}", "an anchor holds itself"),
        ("seed: " + "[" * 20000, "more than 30 levels inside each other"),
        ("seed: " + "{a: " * 20000, "more than 30 levels inside each other"),
        ("\n".join(" " * i + "a:" for i in range(500)), "more than 30 levels"),
        ("seed: " + "9" * 5000, "cannot be read as int"),
        ("seed: 0x" + "f" * 5000, "whole numbers have 64 bits"),
        ("seed: 99999999999999999999", "whole numbers have 64 bits"),
        ("seed: 1:" + "59:" * 300 + "59.5", "cannot be read as float"),
        ("train: {lr: 1e999}", "`train.lr`: found '1e999'; Input should be a finite number"),
        ("train: {lr: 'nan'}", "`train.lr`: found 'nan'; Input should be a finite number"),
        ("train: {lr: .inf}", "'.inf' is no finite number"),
        ("model: {kwargs: {x: .nan}}", "'.nan' is no finite number"),
        ("{[1]: 2}", "a key must be one word"),
        ("? {a: 1}\n: 2", "a key must be one word"),
        ("1: 2", "the key '1' is no text; put it in quotes"),
        ("stage2: {0: {head: crt}}", "the key '0' is no text"),
        ("~: 2", "the key '~' is no text"),
        ("seed: 1\ntrain: {}\nseed: 2", "the key 'seed' is there already, in line 1"),
        ("train:\n  lr: 1\n  epochs: 2\n  lr: 2", "the key 'lr' is there already, in line 2"),
        ('data: {name: "\\ud800"}', "holds a character that is none"),
        ('data: {name: "a\\0b"}', "holds a character that is none"),
        ('data: {name: "\\Uffffffff"}', "not valid YAML"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("\x01", "not valid YAML"),
        ("# " + "x" * 2**18, "expected a config of at most"),
        ("false", "found bool"),
        ("[]", "found list"),
    ],
)
def test_odd_yaml_is_named_in_bounded_time(tmp_path, text, says):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < 2000
    assert time.process_time() - began < 2


def test_anchors_that_spell_out_too_much_are_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 20):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]")
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="anchors spell out more than"):
        load_config(tmp_path / "x.yaml")


def test_anchors_merges_dates_as_text_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "x.yaml"
    text = "data: {name: 2025-13-45}\nmodel: {mean: &a [1, 0.5, 1], std: *a}\n<<: {seed: 7}\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    config = load_config(path)
    assert (config.dataset, config.model.std, config.seed) == ("2025-13-45", (1, 0.5, 1), 7)


def test_a_config_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"seed: 1  # caf\xe9\n")
    with pytest.raises(UserError, match=r"x.yaml: not UTF-8 .* at byte 14\); expected a config"):
        load_config(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("stage2.².epochs=3", "the list has items 0 … 0, not '²'"),
        ("stage2.٠.epochs=3", "the list has items 0 … 0, not '٠'"),
        ("stage2.00.epochs=3", "not '00'"),
        ("stage2.-1.epochs=3", "not '-1'"),
        ("stage2." + "9" * 5000 + ".epochs=3", "the list has items 0 … 0"),
        ("stage2.0=3", "`stage2.0`: found 3"),
        ("stage2.0.epochs.x.y=3", "`stage2.0.epochs`: found {'x': {'y': 3}}"),
        ("model.mean.0.x=3", "0.1 has no 'x' inside it"),
        ("model.kwargs" + ".a" * 5000 + "=3", "a key of 5002 parts"),
        ("train.lr=!!float x", "'x' cannot be read as float"),
        ("train.lr=" + "[" * 5000, "more than 30 levels"),
        ("train.lr=.inf", "no finite number"),
        ("seed=" + "9" * 5000, "cannot be read as int"),
        ("train={lr: 1, lr: 2}", "the key 'lr' is there already"),
        ("train={1: 2}", "the key '1' is no text"),
        ("data.name=\udcff", "not valid YAML"),
    ],
)
def test_an_odd_override_is_named(tmp_path, item, says):
    path = tmp_path / "x.yaml"
    path.write_text("stage2: [{head: crt}]\nmodel: {mean: [0.1, 0.2, 0.3]}\n")
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        load_config(path, [item])
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("seed", range(4))
def test_a_config_of_any_text_is_read_or_named(tmp_path, seed):
    """Lines of a real config with pieces of nasty YAML put anywhere into them."""
    rng = np.random.default_rng(seed)
    text = (ROOT / "configs" / "digits.yaml").read_text()
    nasty = ["[", "{", "}", "]", ": ", "- ", "&a ", "*a", "<<: ", "!!int ", "!!float ", "? ", "'"]
    nasty += ['"', "\n", "\n  ", "1e999", ".nan", "²", "~", "\t", "\x00", "| ", "> ", "%", "@", "`"]
    nasty += ["2025-13-45", "9" * 5000, "!!bool ", "#", ", ", "\ufeff", "!!set ", "\u2028", "---\n"]
    path = tmp_path / "x.yaml"
    for _ in range(60):
        odd = text
        for _ in range(int(rng.integers(1, 5))):
            place = int(rng.integers(len(odd)))
            odd = odd[:place] + nasty[int(rng.integers(len(nasty)))] + odd[place:]
        path.write_text(odd)
        try:
            assert isinstance(load_config(path), Config)
        except UserError as error:
            assert str(path) in str(error)
