"""What 01 prints when it is done, read back from the tables it wrote."""

from pathlib import Path

import pandas as pd

from src.artifacts.dataset import ALWAYS_TRAIN
from src.artifacts.files import read_json, read_table
from src.artifacts.scenes import scenes_in_words
from src.artifacts.work import MANIFEST
from src.errors import some
from src.metrics import bin_names

LARGE = 20  # images; a larger group of "one photo" deserves a look


def describe(directory: Path) -> str:
    """Bins, folds, duplicates and paths of a prepared dataset, as text."""
    images = read_table(directory / "folds.csv", ("label", "fold"))
    classes = read_table(directory / "classes.csv", ("label", "count"))
    test = read_table(directory / "test.csv")
    pairs = read_table(directory / "duplicates.csv", ("distance",))
    head = f"{len(images)} train images of {len(classes)} classes, {len(test)} test images"
    parts = [head, _bins(classes), _folds(images, classes), _duplicates(pairs, images)]
    manifest = read_json(directory / MANIFEST)
    parts += filter(None, [scenes_in_words(manifest.get("scenes", {}))])
    submission = manifest.get("submission", {})
    if "format" in submission and len(test):  # older manifests lack it
        parts.append(f"submission, {submission['format']}: {submission['why']}")
    files = "\n".join(f"  {directory / name}" for name in ("folds.csv", "classes.csv", "test.csv"))
    return "\n\n".join([*parts, f"{files}\n  {directory / 'figures'}/"])


def _bins(classes: pd.DataFrame) -> str:
    rows = []
    for name in bin_names(classes["bin"].to_numpy()):
        count = classes.loc[classes["bin"] == name, "count"]
        rows.append((name, len(count), count.sum(), count.max(), count.min()))
    columns = ["bin", "classes", "images", "largest class", "smallest class"]
    return pd.DataFrame(rows, columns=columns).to_string(index=False)


def _folds(images: pd.DataFrame, classes: pd.DataFrame) -> str:
    bin_of = classes.set_index("label")["bin"]
    table = pd.crosstab(images["fold"], images["label"].map(bin_of))
    table = table[bin_names(classes["bin"].to_numpy())]
    seen = images.groupby("fold")["label"].nunique()
    table = table.assign(images=table.sum(axis=1), classes=seen).reset_index()
    always = images["fold"] == ALWAYS_TRAIN
    table["fold"] = table["fold"].astype(str).replace("-1", "always train")
    table.columns.name = None
    text = table.to_string(index=False)
    if always.any():
        sole = sorted(images.loc[always, "class_id"].unique())
        text += (
            f"\nalways train: classes with one photo or one group; every fold trains on them and "
            f"none is scored on them: class {some(sole)}"
        )
    return text


def _duplicates(pairs: pd.DataFrame, images: pd.DataFrame) -> str:
    kinds = pairs["kind"].value_counts()
    lines = [
        f"duplicates, pairs of images: {kinds.get('exact', 0)} identical, "
        f"{kinds.get('near', 0)} nearly; each photo is in one fold"
    ]
    across = pairs[pairs["split_a"] != pairs["split_b"]]
    if len(across):
        lines.append(
            f"  one in train, one in test, nothing to do: {len(across)}: {_examples(across)}"
        )
    conflict = pairs[pairs["conflict"] == "yes"]
    if len(conflict):
        lines.append(
            f"  two different labels, have a look at them: {len(conflict)}: {_examples(conflict)}"
        )
    largest = images["group_id"].value_counts()
    if len(pairs) and largest.iloc[0] > LARGE:
        lines.append(
            f"  the largest group has {largest.iloc[0]} images ({largest.index[0]!r} …); if they "
            "are not one photo, lower data.near_duplicates"
        )
    elif "near" in kinds:
        lines.append(
            "  figures/duplicates.png shows pairs; if they are not one photo, lower "
            "data.near_duplicates"
        )
    return "\n".join(lines)


def _examples(pairs: pd.DataFrame) -> str:
    shown = [
        f"{a} = {b}" + (f" ({ca} / {cb})" if ca and cb and ca != cb else "")
        for a, b, ca, cb in zip(
            pairs["image_id_a"],
            pairs["image_id_b"],
            pairs["class_id_a"],
            pairs["class_id_b"],
            strict=True,
        )
    ]
    return some(shown)
