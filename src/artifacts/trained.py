"""config.yaml of an experiment: what 02 trained with, and what all later stages go by.

A YAML that was edited after 02, or another `--set`, must not change what 03 … 06 believe about the
network that is there.
"""

from collections.abc import Iterable
from pathlib import Path

import yaml

from src import cli
from src.artifacts.files import write_text
from src.config.read import parse_config
from src.config.schema import Config
from src.config.tree import dump_config, flatten, volatile_keys
from src.config.upgrade import upgraded
from src.errors import UserError

FILE = "config.yaml"
SHOWN = 6  # keys that are named
FIXED = ("model", "train", "soup", "seed")  # decided by 02; the rest is for later stages to choose


def write_config(home: Path, config: Config, searched: dict, decided: Iterable[str] = ()) -> Path:
    """runs/<dataset>/<experiment>/config.yaml: every key; comments say which values of `searched`
    are from a search, and the lines of `decided` what `auto` became, and why."""
    notes = [f"# from search/best.json: {key} = {value!r}\n" for key, value in searched.items()]
    notes += [f"# {line}\n" for line in decided]
    text = yaml.safe_dump(dump_config(config), sort_keys=False, allow_unicode=True)
    return write_text(home / FILE, "".join(notes) + text)


def trained_config(config: Config, home: Path) -> Config:
    """The config with the sections model and train and the seed that 02 trained with; says which
    keys of the YAML at hand differ. Keys that only set the speed stay as they are at hand.

    home: of the experiment; without a config.yaml there (predictions from elsewhere) the YAML at
    hand counts. Errors: UserError for a damaged file, or one that today's keys do not fit.
    """
    path = home / FILE
    found = read_trained(home)
    if not found:
        return config
    fixed = {key: value for key, value in found.items() if key in FIXED}
    kept = parse_config(dump_config(config) | fixed, str(path))
    speed = {key: getattr(config.train, key) for key in volatile_keys(config.train)}
    kept = kept.model_copy(update={"train": kept.train.model_copy(update=speed)})
    if differing := _differing(config, kept):
        cli.say(
            f"{path}: trained with {', '.join(differing)}; what it was trained with counts. Run 02 "
            "with --overwrite to train with the values of now."
        )
    return kept


def read_trained(home: Path) -> dict:
    """config.yaml of an experiment in today's keys; empty where there is none. Errors: UserError
    for a damaged file."""
    path = home / FILE
    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({error}); run 02 again, it writes it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected the keys of a config; run 02 again, it writes it")
    return upgraded(found)


def _differing(now: Config, then: Config) -> list[str]:
    """`key = value then (now value now)` of a few keys; searched ones and those
    that the data decided are meant to differ."""
    old, new = flatten(dump_config(then)), flatten(dump_config(now))
    searched = now.search.keys if now.search.use else ()
    keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    keys = [key for key in keys if key not in searched and key != "auto"]
    keys = [key for key in keys if not any(f"{key}.".startswith(f"{a}.") for a in now.auto)]
    shown = [f"{k} = {old.get(k)!r} (now {new.get(k)!r})" for k in keys[:SHOWN]]
    return shown + ([f"{len(keys) - SHOWN} more keys"] if len(keys) > SHOWN else [])
