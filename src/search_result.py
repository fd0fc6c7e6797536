"""`search/best.json`: what `02_train_stage1.py --search` found, and how later runs use it."""

from pathlib import Path

import yaml

from src.artifacts import MANIFEST, read_json, sha256, write_text
from src.config import dump_config, flatten, with_values
from src.errors import UserError
from src.schema import Config
from src.tables import Dataset

BEST = "best.json"


def with_winner(config: Config, home: Path, data: Dataset) -> tuple[Config, dict]:
    """The config with the winner's values, and those values by key; without a finished search, or
    with `search.use: false`, the config as it is and nothing.

    Errors: UserError when the search was over other keys, or on other folds.
    """
    path = home / "search" / BEST
    if not config.search.use or not (path.parent / MANIFEST).is_file():
        return config, {}
    best = read_json(path)
    again = "Run 02 with --search --overwrite again, or set search.use=false."
    if set(best["values"]) != set(config.search.keys):
        raise UserError(
            f"{path}: found {sorted(best['values'])}, but search.keys now has "
            f"{sorted(config.search.keys)}. {again}"
        )
    if best["folds.csv"] != sha256(data.directory / "folds.csv"):
        raise UserError(f"{path}: searched on other folds than there are now. {again}")
    return with_values(config, best["values"], str(path)), best["values"]


def write_config(path: Path, config: Config, values: dict) -> Path:
    """The resolved config as YAML; a comment says which values are from a search."""
    notes = [f"# from search/{BEST}: {key} = {value!r}\n" for key, value in values.items()]
    text = yaml.safe_dump(dump_config(config), sort_keys=False, allow_unicode=True)
    return write_text(path, "".join(notes) + text)


def describe(config: Config, values: dict, home: Path) -> str:
    """What to print about the winner's values; empty without any."""
    if not values:
        unfinished = (home / "search").is_dir() and not (home / "search" / MANIFEST).is_file()
        return f"{home / 'search'} is unfinished and not used" if unfinished else ""
    best = read_json(home / "search" / BEST)
    was = flatten(dump_config(config))
    found = ", ".join(f"{k} = {value!r} (config: {was.get(k)!r})" for k, value in values.items())
    return (
        f"from {home / 'search' / BEST}: {found}; trial {best['trial']} of {best['trials']}, "
        f"{best['metric']} {best['score']:.3f}"
    )
