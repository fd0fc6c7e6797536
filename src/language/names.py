"""What classes are called, in words: a class_names.csv, or the names of folders, cleaned."""

import re
from pathlib import Path

import pandas as pd

from src.artifacts.files import read_table
from src.config.schema import Config
from src.config.text import NAMES, OpenCLIP
from src.errors import UserError, some

COLUMNS = ("class_id", "name")
WORDNET = re.compile(r"^n\d{8}[\W_]+")  # n02119789_
NUMBERED = re.compile(r"^\d+[\W_]+(?=.*[^\W\d_])")  # 001., 00012_
AND = ";"  # between several names


def class_names(config: Config, classes: pd.DataFrame) -> list[tuple[str, ...]]:
    """One or several names of each class, in the order of the labels.

    classes: classes.csv. Errors: UserError that names the classes without a name, those of which
    two share one, and, of a CSV, classes that there are not.
    """
    ids = classes["class_id"].tolist()
    if path := names_file(config):
        origin, names = path, _read(path, ids)
    else:
        origin, names = "class_name of classes.csv", [(n,) for n in cleaned(classes["class_name"])]
    cure = f"give names in {Path(config.data.root) / (config.text.names or NAMES)}, with the "
    cure += "columns class_id and name, or vectors: text.encoder={name: npz, file: …}"
    if lacking := [c for c, own in zip(ids, names, strict=True) if not any(map(_in_words, own))]:
        raise UserError(
            f"{origin}: {len(lacking)} of {len(ids)} classes have no name in words: class_id "
            f"{some(lacking, 8)}; {cure}"
        )
    owners: dict[str, list[str]] = {}
    for class_id, own in zip(ids, names, strict=True):
        for name in dict.fromkeys(n.casefold() for n in own):
            owners.setdefault(name, []).append(class_id)
    shared = [f"{name!r} of {', '.join(own)}" for name, own in owners.items() if len(own) > 1]
    if shared:
        more = f" and {len(shared) - 8} more" if len(shared) > 8 else ""
        raise UserError(
            f"{origin}: names that classes share say nothing of which is which: "
            f"{'; '.join(shared[:8])}{more}; {cure}"
        )
    return names


def captions(config: Config, classes: pd.DataFrame) -> list[list[str]]:
    """Of each class, [K]: its names in the templates, or as CLIP's zero-shot classifier has them.
    Errors: as `class_names`."""
    templates = config.text.templates or OpenCLIP.templates
    names = class_names(config, classes)
    return [[text.replace("{}", name) for name in own for text in templates] for own in names]


def names_file(config: Config) -> Path | None:
    """The CSV of names, None where there is none. Errors: UserError when the one that text.names
    names is missing."""
    path = Path(config.data.root) / (config.text.names or NAMES)
    if path.is_file():
        return path
    if config.text.names is not None:
        raise UserError(f"{path}: no such file; text.names names a CSV under data.root")
    return None


def cleaned(names: pd.Series) -> list[str]:
    """Names of folders in words. Numbers at their beginning go where all names have one, so that
    `3_toed_sloth` among others keeps its 3, and so do WordNet's."""
    whole = [WORDNET.sub("", name) for name in names]
    if all(NUMBERED.match(name) for name in whole):
        whole = [NUMBERED.sub("", name) for name in whole]
    return [" ".join(name.replace("_", " ").split()) for name in whole]


def _in_words(name: str) -> bool:
    return any(letter.isalpha() for letter in name)


def _read(path: Path, ids: list[str]) -> list[tuple[str, ...]]:
    table = read_table(path)
    if lacking := [column for column in COLUMNS if column not in table]:
        raise UserError(
            f"{path}: columns {some(lacking)} are missing, it has {some(list(table))}; expected a "
            "row `class_id,name` for each class"
        )
    if unknown := sorted(set(table["class_id"]) - set(ids)):
        raise UserError(
            f"{path}: {len(unknown)} class ids are not in classes.csv: {some(unknown)}; write them "
            "as the competition does"
        )
    found: dict[str, list[str]] = {class_id: [] for class_id in ids}
    for class_id, text in zip(table["class_id"], table["name"], strict=True):
        found[class_id] += [" ".join(name.split()) for name in text.split(AND) if name.strip()]
    return [tuple(dict.fromkeys(found[class_id])) for class_id in ids]
