"""Source `folder`: train/<classID>_<className>/*.jpg and test/<imageID>.jpg.

The class id is what stands before the first underscore of the folder's name, the class name what
stands after it; a name without underscore is both, and so is every name with data.class_folders
whole, and with leaf that of the folder that the image lies in. Train ids are
`<class folder>/<file stem>`.
Where all test images lie in class folders, as in train, their labels become the solution.
"""

import os
from pathlib import Path, PurePosixPath

import pandas as pd

from src.config.data import Data
from src.errors import UserError, some
from src.prepare.sources import (
    Asked,
    Source,
    check_names,
    nearest_file,
    optional_file,
    portable,
)

ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .jp2 .avif".split()
)


def read_folder(data: Data, submission: Asked) -> Source:
    """Errors: UserError for a missing directory, a class folder without an id or without images,
    two folders with one id, listed test images that are missing."""
    root = Path(data.root)
    leaf = data.class_folders == "leaf"
    whole = data.class_folders == "whole"
    train, notes = (
        _read_leaves(root / data.train) if leaf else _read_train(root / data.train, whole)
    )
    test = pd.DataFrame({"image_id": [], "path": []}, dtype=str)
    truth = None
    if data.test is not None:
        test, more = read_test(root / data.test, submission)
        notes += more
        truth = None if leaf else _labels_of_folders(test, root / data.test, train)
    solution = optional_file(data, "solution") if len(test) else None
    tables = {"sample_submission": submission.path, "solution": solution}
    return Source(
        train=train.sort_values("image_id", kind="stable", ignore_index=True),
        test=test,
        sample_submission=submission.path,
        solution=solution,
        tables={name: path for name, path in tables.items() if path},
        notes=tuple(notes),
        truth=truth,
    )


def _read_train(directory: Path, whole: bool) -> tuple[pd.DataFrame, list[str]]:
    """whole: a folder's name is its class id"""
    folders = _class_folders(_there(directory), whole)
    rows, ignored = [], []
    for folder in folders:
        files, others = image_files(directory / folder)
        ignored += [f"{folder}/{name}" for name in others]
        if not files:
            found = f"only {some(others)}" if others else "nothing"
            raise UserError(
                f"{directory / folder}: no images in this class folder, {found} was found. Put "
                f"the images there (one of {' '.join(sorted(ENDINGS))}) or remove the folder."
            )
        class_id, _, class_name = (folder, "", "") if whole else folder.partition("_")
        prefix = f"{portable(directory)}/{folder}/"
        for file, stem in zip(files, _stems(files), strict=True):
            rows.append((f"{folder}/{stem}", prefix + file, class_id, class_name or class_id, ""))
    return _table(rows), _notes(directory, ignored)


def _read_leaves(directory: Path) -> tuple[pd.DataFrame, list[str]]:
    """Classes are the folders that images lie in; those of one name are one class."""
    files, ignored = image_files(_there(directory))
    loose = [file for file in files if "/" not in file]
    if loose or not files:
        found = f"{len(loose)} images outside folders: {some(loose)}" if loose else "no images"
        raise UserError(f"{directory}: {found}; expected each image in the folder of its class")
    prefix, rows = portable(directory) + "/", []
    for file, stem in zip(files, _stems(files), strict=True):
        name = PurePosixPath(file).parent.name
        rows.append((stem, prefix + file, name, name, ""))
    return _table(rows), _notes(directory, ignored)


def _there(directory: Path) -> Path:
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such directory{nearest_file(directory)}; expected "
            f"{directory}/<classID>_<className>/*.jpg. "
            "Did you unpack the competition's files there? Otherwise correct data.root and "
            "data.train."
        )
    return directory


def _table(rows: list[tuple]) -> pd.DataFrame:
    columns = ["image_id", "path", "class_id", "class_name", "group"]
    return pd.DataFrame(rows, columns=columns, dtype=str)


def _notes(directory: Path, ignored: list[str]) -> list[str]:
    plain = [name for name in ignored if not name.endswith("/")]
    note = f"{len(plain)} files in {directory} are no images by their ending: {some(plain)}"
    return [*_links_note(directory, ignored), *([note] if plain else [])]


def _links_note(directory: Path, others: list[str]) -> list[str]:
    links = [name for name in others if name.endswith("/")]
    note = f"{len(links)} links to directories in {directory} were not followed: {some(links)}"
    return [note] if links else []


def _class_folders(directory: Path, whole: bool) -> list[str]:
    """Names, sorted. Links to directories count, where they lead to a directory of their own."""
    names = sorted(filter(visible, os.listdir(directory)))
    check_names(names, directory)
    nowhere = [name for name in names if not os.path.exists(directory / name)]
    if nowhere:
        raise UserError(
            f"{directory}: {len(nowhere)} links lead nowhere or to themselves: {some(nowhere)}. "
            "Put back what they lead to, or remove them."
        )
    folders = [name for name in names if os.path.isdir(directory / name)]
    if not folders:
        raise UserError(f"{directory}: no class folders; expected <classID>_<className>/ in it")
    if not whole:
        _check_class_ids(directory, folders)
    owner = {}
    for name in folders:
        real = os.path.realpath(directory / name)
        if Path(os.path.realpath(directory)).is_relative_to(real):
            raise UserError(f"{directory / name}: a link back to {real}, above it; remove it")
        if real in owner:
            raise UserError(
                f"{directory}: {owner[real]!r} and {name!r} are links to one directory, {real}. "
                "Expected images of its own in each class folder; remove one."
            )
        owner[real] = name
    return folders


def _check_class_ids(directory: Path, folders: list[str]) -> None:
    without = [name for name in folders if not name.partition("_")[0].strip()]
    if without:
        raise UserError(
            f"{directory}: {len(without)} class folders without an id: {some(without)}. Expected "
            "<classID>_<className>, for example 12_Sparrow; rename them."
        )
    owner: dict[str, str] = {}
    for name in folders:
        class_id = name.partition("_")[0]
        if class_id in owner:
            raise UserError(
                f"{directory}: the folders {owner[class_id]!r} and {name!r} have one class id, "
                f"{class_id!r}. Expected <classID>_<className> with an id of its own for each "
                "class: merge them or rename one. If underscores are part of your names, set "
                "data.class_folders=whole."
            )
        owner[class_id] = name


def read_test(directory: Path, submission: Asked) -> tuple[pd.DataFrame, list[str]]:
    """image_id and path of test images anywhere below a directory, and notes. Ids are files' names
    with or without ending, those of the sample where it asks for some, in its order."""
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such directory; expected the test images in it. Correct data.test, "
            "or set data.test=null if there are none."
        )
    files, others = image_files(directory)
    if not files:
        found = f"only {some(others)}" if others else "nothing"
        raise UserError(
            f"{directory}: no test images in it, {found} was found. Put them there (one of "
            f"{' '.join(sorted(ENDINGS))}), or set data.test=null if there are none."
        )
    stems = [PurePosixPath(file).with_suffix("").as_posix() for file in files]
    of_stem: dict[str, list[str]] = {}
    for stem, file in zip(stems, files, strict=True):
        of_stem.setdefault(stem, []).append(file)
    if submission.ids is None:
        wanted = [[stem, of_stem[stem]] for stem in sorted(of_stem)]
    else:
        names = set(files)
        wanted = [[i, [i] if i in names else of_stem.get(i, [])] for i in submission.ids]
    missing = [i for i, found in wanted if not found]
    if missing:
        raise UserError(
            f"{submission.path}: {len(missing)} of {len(wanted)} ids have no image in {directory}: "
            f"{some(missing)}. Expected a file of that name, with or without ending; complete the "
            "download or correct the ids."
        )
    several = [some(found) for _, found in wanted if len(found) > 1]
    if several:
        raise UserError(
            f"{directory}: {len(several)} ids belong to more than one file: {several[0]}. "
            "Image ids must be unique; remove or rename one of the files."
        )
    prefix = portable(directory) + "/"
    test = pd.DataFrame(
        [(i, prefix + found[0]) for i, found in wanted], columns=["image_id", "path"], dtype=str
    )
    left_out = sorted(set(files) - {found[0] for _, found in wanted})
    note = f"{len(left_out)} images in {directory} are not in {submission.path}: {some(left_out)}"
    return test, [*_links_note(directory, others), *([note] if left_out else [])]


def _labels_of_folders(
    test: pd.DataFrame, directory: Path, train: pd.DataFrame
) -> pd.DataFrame | None:
    """image_id and class_id of test images, if every one lies in a folder that train has, too."""
    of_folder = dict(zip(train["image_id"].str.partition("/")[0], train["class_id"], strict=True))
    inside = test["path"].str.removeprefix(portable(directory) + "/")
    classes = inside.str.partition("/")[0].map(of_folder)
    if classes.isna().any():
        return None
    return pd.DataFrame({"image_id": test["image_id"], "class_id": classes})


def image_files(directory: Path) -> tuple[list[str], list[str]]:
    """Files anywhere below a directory, as sorted posix paths: images by ending, and others.

    Hidden files and directories (`.DS_Store`, `._x.jpg`, `__MACOSX`) are passed over. Links to
    directories are not followed, they may lead in a circle; they are among the others, as `name/`.
    Errors: UserError for names that no table can hold, OSError for what may not be read.
    """
    images, others = [], []
    for parent, below, files in os.walk(directory, onerror=_stop):
        below[:] = [name for name in below if visible(name)]
        inside = Path(parent).relative_to(directory)
        links = [name for name in below if os.path.islink(os.path.join(parent, name))]
        others += [f"{(inside / name).as_posix()}/" for name in links]
        for name in filter(visible, files):
            known = os.path.splitext(name)[1].lower() in ENDINGS
            (images if known else others).append((inside / name).as_posix())
    check_names(images, directory)
    return sorted(images), sorted(others)


def _stop(error: OSError) -> None:
    """os.walk would pass over a directory that it may not read."""
    raise error


def without_ending(name: str) -> str:
    """The name, or path, of a file without its ending where that is one of images."""
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in ENDINGS else name


def visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _stems(files: list[str]) -> list[str]:
    """File names without ending, except where two files would then share one."""
    stems = [os.path.splitext(file)[0] for file in files]
    seen = pd.Series(stems).value_counts()
    return [f if seen[s] > 1 else s for f, s in zip(files, stems, strict=True)]
