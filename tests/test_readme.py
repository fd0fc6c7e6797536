"""README.md is exact: the scripts, options, keys, configs and rooms that it names are there."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from src.config.read import load_config
from src.config.walk import all_keys, sure_keys

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = r"^ *```\n(.*?)^ *```$"
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(BLOCK, TEXT, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.strip().startswith(("python ", "accelerate ", "torchrun "))
]
NAMED = [
    " ".join(text.split())
    for text in re.findall(r"`([^`]+)`", re.sub(BLOCK, "", TEXT, flags=re.DOTALL | re.MULTILINE))
]
SECTIONS = {key.partition(".")[0] for key in all_keys()}
SETTINGS = [n for n in NAMED if re.match(r"[a-z0-9_.]+: ", n) and "|" not in n and "<" not in n]


def where(command: list[str]) -> Path:
    """The file of the script or module that a command starts."""
    if "-m" in command:
        module = ROOT / command[command.index("-m") + 1].replace(".", "/")
        return module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
    return ROOT / next(word for word in command if word.endswith(".py"))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_has_its_script_and_its_options(command):
    """Options are looked for in the text of the script and of what it takes them from."""
    script = where(command)
    assert script.is_file()
    options = command[command.index(str(script.relative_to(ROOT))) :] if "-m" not in command else []
    known = [script, *(ROOT / p for p in ("src/cli.py", "benchmarks/arguments.py"))]
    text = "".join(path.read_text(encoding="utf-8") for path in known)
    for option in (word for word in options or command[3:] if word.startswith("--")):
        assert f'"{option}"' in text, f"{script.name} has no {option}"


@pytest.mark.parametrize("named", [n for n in NAMED if re.match(r"0[1-6] --", n)])
def test_an_option_named_with_its_number_is_the_scripts(named):
    (script,) = ROOT.glob(f"{named[:2]}_*.py")
    text = script.read_text() + (ROOT / "src/cli.py").read_text()
    assert all(f'"{option}"' in text for option in re.findall(r"--[a-z-]+", named))


def test_every_key_is_one_of_the_configs():
    known = {*all_keys(), *sure_keys()}
    known |= {".".join(key.split(".")[:depth]) for key in known for depth in (1, 2, 3)}
    dotted = r"[a-z]+[0-9]?(\.[a-z_]+)+(: .*)?"
    keys = [name.partition(":")[0] for name in NAMED if re.fullmatch(dotted, name)]
    keys = [key for key in keys if key.partition(".")[0] in SECTIONS]
    keys = [key for key in keys if not key.endswith((".csv", ".sbatch"))]  # those are files
    assert len(keys) > 20 and set(keys) - known == set()


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_is_taken(setting):
    """`a.b: value`; those without a section are keys of model."""
    key, _, value = setting.partition(": ")
    key = key if key.partition(".")[0] in SECTIONS else f"model.{key}"
    value = yaml.safe_load(value)
    values = {f"model.{k}": v for k, v in value.items()} if key == "model" else {key: value}
    items = [f"{k}={json.dumps(v)}" for k, v in values.items()]
    items += ["train.second_sampler=reversed"] if "bbn" in setting else []
    load_config(ROOT / "configs/starter.yaml", items)


def test_paths_and_configs_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", TEXT):
        assert (ROOT / "".join(target)).exists(), target
    configs = [n for n in NAMED if re.fullmatch(r"[a-z0-9_]+\.yaml", n) and n != "config.yaml"]
    assert len(configs) > 8
    assert all((ROOT / "configs" / name).is_file() for name in configs)
    shipped = {path.stem for path in (ROOT / "configs").glob("*.yaml")} - {"folder_template"}
    told = [name.removesuffix(".yaml") for name in NAMED if re.fullmatch(r"[a-z0-9_.*]+", name)]
    for name in told:
        shipped -= {path.stem for path in (ROOT / "configs").glob(f"{name}.yaml")}
    assert not shipped, "configs that the README does not name"


def test_the_map_of_the_tree_is_true():
    block = TEXT.split("## Layout")[1].split("```")[1]
    drawn = set(re.findall(r"\bsrc/([a-z_]+)(?:/|\.py)", block))
    there = {p.stem for p in (ROOT / "src").iterdir() if p.name[0] not in "_."}
    assert drawn == there


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_a_config_says_in_its_first_comment_what_it_expects(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    head = " ".join(line for line in lines[:30] if line.startswith("#"))
    assert re.search(r"Expects|Data:|Needs|data/raw|demo|Every key|data\.root", head)
