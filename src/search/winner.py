"""`best.json` of a search: what 02 or 03 found with `--search`, and how later runs use it.

search/ is that of stage 1, stage2/<head>/search/ that of a head.
"""

from pathlib import Path

from src.artifacts.dataset import Dataset
from src.artifacts.files import read_json, sha256
from src.artifacts.work import MANIFEST, checked
from src.config.head_keys import head_key, head_ranges
from src.config.read import with_values
from src.config.schema import Config
from src.config.tree import dump_config, flatten
from src.errors import UserError
from src.metrics import short_name

BEST = "best.json"


def with_winner(config: Config, home: Path, data: Dataset) -> tuple[Config, dict]:
    """The config with the winner's values, and those values by key; without a finished search, or
    with `search.use: false`, the config as it is and nothing.

    Errors: UserError when the search was over other keys, or on other folds.
    """
    if not config.search.use:
        return config, {}
    values = _winner(home / "search", set(config.search.keys), data, "02", "search")
    return _with(config, values, home / "search"), values


def with_head_winners(config: Config, home: Path, data: Dataset) -> tuple[Config, dict[str, dict]]:
    """The same for stage 2: the config with the winners' values, and those values by head."""
    found: dict[str, dict] = {}
    if not config.search.stage2.use:
        return config, found
    for name, ranges in head_ranges(config).items():
        directory = head_directory(home, name)
        found[name] = _winner(directory, set(ranges), data, "03", "search.stage2")
        places = {head_key(config, key, str(directory)): v for key, v in found[name].items()}
        config = _with(config, places, directory)
    return config, found


def _with(config: Config, values: dict, directory: Path) -> Config:
    return with_values(config, values, str(directory / BEST)) if values else config


def head_directory(home: Path, name: str) -> Path:
    """Of the search for a head's settings."""
    return home / "stage2" / name / "search"


def _winner(directory: Path, keys: set[str], data: Dataset, script: str, section: str) -> dict:
    """The values of a finished search, by key."""
    path = directory / BEST
    if not (directory / MANIFEST).is_file():
        return {}
    best = read_best(path)
    again = f"Run {script} with --search --overwrite again, or set {section}.use=false."
    if set(best["values"]) != keys:
        raise UserError(
            f"{path}: found {sorted(best['values'])}, but {section}.keys now has "
            f"{sorted(keys)}. {again}"
        )
    if best.get("folds.csv") != sha256(data.directory / "folds.csv"):
        raise UserError(f"{path}: searched on other folds than there are now. {again}")
    return best["values"]


def read_best(path: Path) -> dict:
    """best.json. Errors: UserError when it is damaged, or lacks what a winner is."""
    needs = {"values": dict, "metric": str, "score": int | float, "trial": int, "trials": int}
    return read_json(checked(path), needs)


def describe(config: Config, values: dict, home: Path) -> str:
    """What to print about the values of stage 1's winner; empty without any."""
    return _describe(flatten(dump_config(config)), values, home / "search")


def describe_head(config: Config, name: str, values: dict, home: Path) -> str:
    """The same for a head."""
    now = flatten(dump_config(config))
    was = {key: now[head_key(config, key, key)] for key in values}
    return _describe(was, values, head_directory(home, name))


def _describe(was: dict, values: dict, directory: Path) -> str:
    if not values:
        unfinished = directory.is_dir() and not (directory / MANIFEST).is_file()
        return f"{directory} is unfinished and not used" if unfinished else ""
    return f"from {directory / BEST}: {found_text(read_best(directory / BEST), was)}"


def found_text(best: dict, was: dict | None = None) -> str:
    """The winner in words: its values, its score, and where it was judged, what it gained there.

    best: of best.json · was: the config's own values by key, to be named beside the winner's
    """
    own = {} if was is None else {key: f" (config: {was.get(key)!r})" for key in best["values"]}
    values = ", ".join(f"{k} = {v!r}{own.get(k, '')}" for k, v in best["values"].items())
    text = f"{values}; trial {best['trial']} of {best['trials']}, "
    text += f"{short_name(best['metric'])} {best['score']:.3f}"
    if "gain" in best:
        gain, margin = best["gain"], 1.96 * best["noise"]
        text += (
            f"; on fold {best['fold']}, where nothing was chosen, {gain:+.3f} over the config's "
            f"own values (95 %: {gain - margin:+.3f} to {gain + margin:+.3f})"
        )
    return text
