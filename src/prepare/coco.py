"""Source `coco`: JSON with images, annotations and categories, as iNaturalist has it.

    {"images": [{"id": 7, "file_name": "train_val2018/Aves/2820/x.jpg"}, …],
     "annotations": [{"image_id": 7, "category_id": 2820}, …],
     "categories": [{"id": 2820, "name": "Motacilla alba"}, …]}

Image ids and class ids are the JSON's own. A test JSON may go without annotations; with them, they
become the solution.
"""

import json
from pathlib import Path

import pandas as pd

from src.artifacts.ids import check_unique
from src.config.data import Data
from src.errors import UserError, read_text, some
from src.prepare.sources import (
    Asked,
    Source,
    check_names,
    image_paths,
    in_submission_order,
    source_file,
    source_of_tables,
)


def read_coco(data: Data, submission: Asked) -> Source:
    """Errors: UserError for a missing or malformed JSON, train images without a category or with
    several, categories that are not listed, and images that are not there."""
    path = source_file(data, "train", "JSON")
    tree = read_tree(path, ("images", "annotations", "categories"))
    train = _images(tree, path)
    without = train.loc[train["class_id"].isna(), "image_id"]
    if len(without):
        raise UserError(
            f"{path}: {len(without)} of {len(train)} images have no annotation: "
            f"{some(without.tolist())}. Each train image needs one; is it the train JSON?"
        )
    train["class_name"] = train["class_id"].map(_names(tree, path))
    unnamed = sorted(set(train.loc[train["class_name"].isna(), "class_id"]))
    if unnamed:
        raise UserError(f"{path}: annotations of categories that are not listed: {some(unnamed)}")
    train["path"] = image_paths(data, "train_images", train["file"], path, "file_name")
    train["group"] = ""
    test, test_path, said = _read_test(data, submission)
    known = test.dropna(subset="class_id")[["image_id", "class_id"]]
    fields = {"train": _fields(tree), "test": said} if data.columns else {}
    tables = (train, path), (test, test_path)
    return source_of_tables(data, *tables, submission, known, fields)


def _read_test(data: Data, submission: Asked) -> tuple[pd.DataFrame, Path | None, pd.DataFrame]:
    """image_id, path and class_id of the test images; the JSON's file; and all it says of them."""
    if data.test is None:
        empty = pd.DataFrame(columns=["image_id", "path", "class_id"], dtype=str)
        return empty, None, pd.DataFrame()
    path = source_file(data, "test", "JSON")
    tree = read_tree(path, ("images",))
    test = in_submission_order(_images(tree, path), submission, path)
    test["path"] = image_paths(data, "test_images", test["file"], path, "file_name")
    return test, path, _fields(tree) if data.columns else pd.DataFrame()


def _fields(tree: dict) -> pd.DataFrame:
    """Every field of the images' entries as text, by image id; "" where an entry lacks it."""
    entries = tree["images"]
    names = dict.fromkeys(name for entry in entries for name in entry)
    fields = {name: [_text(entry.get(name)) for entry in entries] for name in names}
    return pd.DataFrame(fields, index=[str(entry["id"]) for entry in entries], dtype=str)


def _text(value) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def read_tree(path: Path, keys: tuple[str, ...]) -> dict:
    """The tree of a JSON file. Errors: UserError for one without these lists."""
    text = read_text(path, "COCO-style JSON")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    found = sorted(tree) if isinstance(tree, dict) else type(tree).__name__
    lists = tree if isinstance(tree, dict) else {}
    lists = {key: value for key, value in lists.items() if isinstance(value, list)}
    lacking = [key for key in keys if not lists.get(key)]
    if lacking:
        raise UserError(
            f"{path}: {some(lacking)} is missing, empty or no list; it has {found}. Expected "
            f"COCO-style JSON with the lists {', '.join(keys)}."
        )
    return tree


def _images(tree: dict, path: Path) -> pd.DataFrame:
    """image_id, file, class_id (None where there is no annotation), sorted as in the JSON."""
    class_of: dict[str, str] = {}
    try:
        images = [(str(image["id"]), str(image["file_name"])) for image in tree["images"]]
        for annotation in tree.get("annotations") or ():
            image, category = str(annotation["image_id"]), str(annotation["category_id"])
            if class_of.setdefault(image, category) != category:
                raise UserError(
                    f"{path}: image {image!r} has the categories {class_of[image]!r} and "
                    f"{category!r}; expected one per image. Remove the others."
                )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: an entry lacks {error}; expected images with id and file_name, annotations "
            "with image_id and category_id"
        ) from error
    check_names([name for image in images for name in image], path)
    check_names(class_of.values(), path)
    table = pd.DataFrame(images, columns=["image_id", "file"], dtype=str)
    check_unique(table["image_id"], path)
    unknown = sorted(class_of.keys() - set(table["image_id"]))
    if unknown:
        raise UserError(f"{path}: annotations of images that are not listed: {some(unknown)}")
    return table.assign(class_id=[class_of.get(image) for image in table["image_id"]])


def _names(tree: dict, path: Path) -> dict[str, str]:
    try:
        return {str(c["id"]): str(c.get("name", c["id"])) for c in tree["categories"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: a category lacks {error}; expected id and name") from error
