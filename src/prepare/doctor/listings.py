"""A competition whose JSON files or lists say what its images are: the keys of the sources `coco`
and `list`."""

from dataclasses import dataclass
from pathlib import PurePosixPath

import pandas as pd

from src.errors import UserError
from src.prepare.coco import read_tree
from src.prepare.doctor.choice import Choice
from src.prepare.doctor.ids import Ids, ids_of
from src.prepare.doctor.survey import Survey, Table, is_held_out, is_test, is_train
from src.prepare.lists import begins_as_list, read_list


@dataclass(frozen=True)
class Listing:
    """source: that reads it · images: it names · labelled: all of them have a class · ids: where
    the images are"""

    path: str
    source: str
    images: int
    labelled: bool
    ids: Ids


def by_listings(survey: Survey) -> list[Choice] | None:
    """None where no JSON and no list says the classes of images."""
    found = [one for path in survey.unread if (one := _listing(path, survey))]
    train = [one for one in found if one.labelled and not _for_test(one) and not _held(one)]
    if not train:
        return None
    best = max(train, key=lambda one: (is_train(one.path), one.images))
    others = [one for one in found if one.source == best.source and one is not best]
    tests = [one for one in others if not one.labelled or _for_test(one)]
    test = max(tests, key=lambda one: (_for_test(one), one.images), default=None)
    left = [f"{one.path} ({one.images} images)" for one in others if one is not test]
    kind = "COCO-style JSON" if best.source == "coco" else "a list of `path label` lines"
    why = f"{best.path} is {kind} with the classes of {best.images} images."
    if left:
        why += f" Not taken: {'; '.join(left[:4])}: folds are made of one file."
    choices = [
        Choice("data.source", best.source, why),
        Choice("data.train", best.path, "the file"),
        Choice("data.train_images", best.ids.directory, "the directory that its paths start from"),
    ]
    if test is None:
        why = ("no file of that kind lists test images", survey.to_extract())
        return [*choices, Choice("data.test", None, ". ".join(filter(None, why)))]
    return [
        *choices,
        Choice("data.test", test.path, f"it lists {test.images} test images"),
        Choice("data.test_images", test.ids.directory, "the directory that its paths start from"),
    ]


def _for_test(one: Listing) -> bool:
    return is_test(one.path) and not is_train(one.path)


def _held(one: Listing) -> bool:
    return any(map(is_held_out, PurePosixPath(one.path).with_suffix("").parts))


def _listing(path: str, survey: Survey) -> Listing | None:
    """None for what is neither, or names no images that are here."""
    source = {"json": "coco", "txt": "list"}.get(path.rpartition(".")[2].lower())
    try:
        if source == "coco":
            tree = read_tree(survey.root / path, ("images",))
            names = [str(image["file_name"]) for image in tree["images"]]
            labelled = bool(tree.get("annotations") and tree.get("categories"))
        elif source == "list" and begins_as_list(survey.root / path):
            table = read_list(survey.root / path)
            names, labelled = table["image_id"], bool((table["class_id"] != "").all())
        else:
            return None
    except (UserError, OSError, KeyError, TypeError):
        return None
    table = Table(path, pd.DataFrame({"path": names}, dtype=str))
    ids = ids_of(table, survey, train=not is_test(path))
    if ids is None or ids.suffix or not ids.as_is:
        return None
    return Listing(path, source, len(names), labelled, ids)
