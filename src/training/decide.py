"""What the data decides: `auto` keys of a config become values (src/config/auto.py)."""

from pathlib import Path
from typing import Any

import numpy as np

from src.artifacts.dataset import Dataset
from src.artifacts.trained import FILE, read_trained
from src.config.auto import BALANCED, RULES, Facts
from src.config.read import with_values
from src.config.schema import Config


def decided(config: Config, home: Path, data: Dataset, *, anew: bool) -> tuple[Config, list[str]]:
    """The config with a value for every key of `auto`, and what to say about them.

    home: of the experiment; what its config.yaml says is kept unless `anew`, so that a run goes on
    as it began. Errors: UserError for a damaged config.yaml, and a value that the rest of the
    config does not go with.
    """
    if not config.auto:
        return config, []
    found = {} if anew else read_trained(home)
    if found:
        values = {key: _at(found, key) for key in config.auto}
        why = dict.fromkeys(values, f"as {home / FILE} has it; --overwrite decides anew")
    else:
        facts = facts_of(config, data)
        both = {key: RULES[key](facts) for key in config.auto}
        values = {key: value for key, (value, _) in both.items()}
        why = {key: reason for key, (_, reason) in both.items()}
    lines = [f"{key} = {_short(values[key])} (auto: {why[key]})" for key in config.auto]
    return with_values(config, values | {"auto": []}, "auto"), lines


def facts_of(config: Config, data: Dataset) -> Facts:
    counts = data.counts(data.images)
    present = counts[counts > 0]
    sides = np.minimum(data.images["width"], data.images["height"])
    like_test = config.target_prior or ("balanced" if config.metric in BALANCED else "train")
    return Facts(
        images=len(data.images),
        classes=len(present),
        ratio=float(present.max() / present.min()),
        side=int(np.median(sides)),
        balanced=like_test != "train",
        pretrained=config.model.pretrained not in (False, None),
    )


def _at(tree: dict, key: str) -> Any:
    """Errors: KeyError for a file of before the key was there; defaults are filled in by then."""
    for part in key.split("."):
        tree = tree[part]
    return tree


def _short(value: Any) -> Any:
    return value["name"] if isinstance(value, dict) else value
