"""Reading a config: YAML file + `--set key=value` → validated, frozen `Config`.

Unknown keys and wrong values become errors that say what was meant. Nothing here imports torch, so
that 04 and 06 start fast.
"""

import difflib
import shlex
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from pydantic import ValidationError

from src.config.auto import take_auto
from src.config.explain import explain
from src.config.head_keys import head_key
from src.config.metric import parse
from src.config.own_metric import own_metric
from src.config.schema import Config
from src.config.tree import dump_config, put
from src.config.walk import all_keys
from src.config.yaml_text import load_yaml
from src.errors import UserError, read_text, shortened


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides, and validate.

    Errors: UserError for a missing file, bad YAML, an unknown key (with the nearest right one), a
    wrong type or value (with what was expected).
    """
    path = Path(path)
    if path.is_dir() or (path.is_file() and is_zipfile(path)):
        raise UserError(
            f"{path}: this is a {'directory' if path.is_dir() else 'zip'}, not a config; to have "
            f"one written for it: `python 01_prepare_folds.py --inspect {shlex.quote(str(path))}`"
        )
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"{path}: no such config file{hint}")
    tree = load_yaml(read_text(path, "a config, a YAML text file"), str(path))
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected `key: value` pairs, found {type(tree).__name__}")
    for item in overrides:
        _override(tree, item)
    take_auto(tree)
    config = parse_config(tree, str(path))
    _check_own_metrics(config)
    _check_search(config, str(path))
    return config


def parse_config(tree: dict, origin: str = "config") -> Config:
    """Validate a nested dictionary; `origin` is named in the errors."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        found = error.errors()
        lines = [explain(e) for e in found[:12]]
        lines += [f"… and {len(found) - 12} more"] if len(found) > 12 else []
        raise UserError(f"{origin}: " + "\n".join(lines)) from None


def with_values(config: Config, values: dict[str, Any], origin: str) -> Config:
    """The config with other values, by key as in `--set`; `origin` is named in the errors."""
    tree = dump_config(config)
    for key, value in values.items():
        put(tree, key, value, origin)
    return parse_config(tree, origin)


def _check_own_metrics(config: Config) -> None:
    """Errors: UserError for a metric of the user's that is not there, before hours are spent."""
    for text in filter(None, (config.metric, config.search.metric)):
        if (what := parse(text)).name == "python":
            own_metric(what)


def _check_search(config: Config, origin: str) -> None:
    """Errors: UserError for a key of `search.keys` that is none, or a range beyond its own."""
    for key, span in config.search.keys.items():
        where = f"{origin}: search.keys {key}"
        if key.split(".")[0] not in ("model", "train"):
            right = [k for k in all_keys() if k.startswith(("model.", "train."))]
            near = difflib.get_close_matches(key, right, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"{where}: only keys of model and train decide how stage 1 ends, and those of "
                f"heads are for search.stage2.keys{hint}"
            )
        for value in span.ends:
            with_values(config, {key: value}, where)
    for key, span in (config.search.stage2.keys or {}).items():
        where = f"{origin}: search.stage2.keys {key}"
        place = head_key(config, key, where)
        for value in span.ends:
            with_values(config, {place: value}, where)


def _override(tree: dict, item: str) -> None:
    """Set one `train.lr=0.1` or `stage2.0.epochs=5` in the tree."""
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise UserError(
            f"--set {shortened(item)}: expected key=value without spaces, for example "
            "train.epochs=3"
        )
    origin = f"--set {shortened(item)}"
    put(tree, key, load_yaml(text, origin), origin)
