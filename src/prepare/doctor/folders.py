"""A competition whose directories say what its images are: the keys of source `folder`."""

import re
from collections import Counter
from pathlib import PurePosixPath

from src.errors import UserError, shortened, some
from src.prepare.doctor.choice import Choice
from src.prepare.doctor.ids import ids_of
from src.prepare.doctor.survey import Survey, is_held_out, is_test, is_train
from src.prepare.doctor.tables import sample_of

MOST = 0.9  # share of the images that the training directory has where none is called so
ID = re.compile(r"[^\W_]*\d[^\W_]*")  # n02119789, 00012; not 001.Black, n02085782-Japanese


def by_folders(survey: Survey, passed: dict[str, str]) -> list[Choice]:
    """passed: why each table is not taken. Errors: UserError where no directory has class
    folders."""
    directory = _train_directory(survey)
    if directory is None:
        raise UserError(_nothing(survey, passed))
    inside = survey.below(directory)
    names = sorted({path.partition("/")[0] for path in inside if "/" in path})
    why = (
        f"no table says what the images are, and {directory or 'the directory'} has {len(names)} "
        f"folders of images, {some(names)}"
    )
    if passed:
        reasons = [f"{path} ({shortened(reason)})" for path, reason in list(passed.items())[:4]]
        why += f".\nNot taken: {'; '.join(reasons)}"
    held = [f for f in survey.directories() if is_held_out(f.rpartition("/")[2])]
    if held:
        why += (
            f".\n{some(held)} ({sum(len(survey.below(f)) for f in held)} images) is left out: "
            "folds are made here. Move its images into the class folders to train on them, too"
        )
    choices = [
        Choice("data.source", "folder", why),
        Choice("data.train", directory or ".", "the directory with the class folders"),
        _class_folders(inside, names, _asked_classes(survey)),
    ]
    return [*choices, _test(survey, directory)]


def _train_directory(survey: Survey) -> str | None:
    """Called so, or else the deepest with most of the images."""
    children: dict[str, set[str]] = {}
    below = Counter()
    for folder, count in survey.folders.items():
        parts = folder.split("/") if folder else []
        for depth in range(len(parts) + 1):
            above = "/".join(parts[:depth])
            below[above] += count
            if depth < len(parts):
                children.setdefault(above, set()).add(parts[depth])
    able = [d for d, names in children.items() if len(names) > 1 and not survey.folders[d]]
    able = [d for d in able if sum(map(_is_split, children[d])) <= len(children[d]) / 3]
    able = [d for d in able if not any(map(_is_other, d.split("/")))]
    named = [d for d in able if is_train(d.rpartition("/")[2])]
    if named:
        return max(named, key=lambda d: (below[d], -d.count("/")))
    tested = sum(n for f, n in survey.folders.items() if any(map(_is_other, f.split("/"))))
    large = [d for d in able if below[d] >= MOST * (len(survey.images) - tested)]
    return min(large, key=lambda d: d.count("/"), default=None)


def _is_other(name: str) -> bool:
    return is_test(name) or is_held_out(name)


def _is_split(name: str) -> bool:
    return _is_other(name) or is_train(name)


def _asked_classes(survey: Survey) -> set[str]:
    """Words that the sample submission has where classes can stand: cells and names of columns."""
    sample = sample_of(survey)
    if sample is None:
        return set()
    columns = list(sample.first)[1:]
    words = {word for c in columns[:3] for cell in sample.first[c] for word in cell.split()}
    return words | set(columns)


def _class_folders(inside: list[str], names: list[str], asked: set[str]) -> Choice:
    leaves = {PurePosixPath(path).parent.name for path in inside}
    deep = sum(path.count("/") > 1 for path in inside)
    first = [name.partition("_")[0] for name in names]
    ways = {"id_name": set(first), "whole": set(names), "leaf": leaves}
    agree = {way: len(ids & asked) for way, ids in ways.items()}
    best = max(agree, key=lambda way: agree[way])
    if agree[best] > 1 or (agree[best] and agree[best] == len(asked)):
        why = f"the sample submission has its class ids, {some(sorted(ways[best] & asked))}"
        return Choice("data.class_folders", best, why)
    if deep > len(inside) / 2 and len(leaves) > len(names):
        why = (
            f"images lie deeper: {len(leaves)} folders of images in {len(names)} folders. Classes "
            "are the innermost; for the outer ones set whole"
        )
        return Choice("data.class_folders", "leaf", why)
    ids = all(map(ID.fullmatch, first)) and len(set(first)) == len(first)
    if ids and any("_" in name for name in names):
        why = "folders begin with an id that has digits, then an underscore and a name"
        return Choice("data.class_folders", "id_name", why)
    why = "folders have no id before an underscore: their whole names are the class ids"
    return Choice("data.class_folders", "whole", why)


def _test(survey: Survey, train: str) -> Choice:
    sample = sample_of(survey)
    if sample is not None and (ids := ids_of(sample, survey, train=False)):
        why = f"images of the ids in {sample.path}, column {ids.column!r}, lie here"
        return Choice("data.test", ids.directory or ".", why)
    named = [d for d in survey.directories() if d and is_test(d.rpartition("/")[2])]
    named = [d for d in named if train and d != train and not d.startswith(f"{train}/")]
    if named:
        best = max(named, key=lambda d: (len(survey.below(d)), -d.count("/")))
        why = f"by its name; it has {len(survey.below(best))} images"
        return Choice("data.test", best, why)
    why = "no directory is called test, and no sample submission names test images: 01 to 04 run, "
    why += "and 05 has nothing to predict"
    return Choice("data.test", None, why)


def _nothing(survey: Survey, passed: dict[str, str]) -> str:
    reasons = "".join(f"\n{path}: {why}." for path, why in passed.items())
    todo = survey.to_extract() or (
        "Bring the table of labels there, as CSV; or, where the class stands in file names, make a "
        "table of two columns, image_id and class_id, and inspect again"
    )
    return (
        f"{survey.root}: cannot tell the classes of the images. Looked for a CSV with a column "
        "that names images (with or without ending) and one of their classes; for a list of "
        "`path label` lines; for COCO-style JSON; and for a directory with two or more folders of "
        f"images, one per class. Found\n{survey}{reasons}\n{todo}."
    )
