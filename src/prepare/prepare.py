"""01 as one call: raw images → classes.csv, folds.csv, test.csv and what they rest on."""

import hashlib
import shutil
from pathlib import Path

import pandas as pd

from src import cli
from src.artifacts.dataset import dataset_dir
from src.artifacts.files import read_json, write_table, write_text
from src.artifacts.lock import own
from src.artifacts.scenes import SCENES
from src.artifacts.work import MANIFEST, Work
from src.config.data import OURS
from src.config.schema import Config
from src.errors import UserError, some
from src.prepare.classes import class_lines, class_order, class_table
from src.prepare.columns import beside
from src.prepare.duplicates import find_duplicates
from src.prepare.few import few_images, few_rows, few_test_images
from src.prepare.figures import draw_figures
from src.prepare.folds import make_folds
from src.prepare.longtail import cut_tail
from src.prepare.observations import observed
from src.prepare.read import read_source
from src.prepare.scan import FACTS, PARTS, clean_up, scan_images
from src.prepare.scenes import find_scenes, joined, split_by
from src.prepare.sources import Source

BESIDE = (  # another config has the same folds, whatever its name is
    "set data.name to a new name to have folds of both kinds: all experiments on one dataset share "
    "its folds, and those that were trained on the old ones would have to be trained again"
)


def prepare(config: Config, overwrite: bool = False) -> Path:
    """Write runs/<dataset>/folds/; returns that directory.

    Finished work is skipped, a killed run is continued. Errors: UserError for everything that
    `read_source` finds, unreadable images, classes that are left without an image, and a directory
    that was made with other settings or from other images.
    overwrite: what is there stays until all images were read and the folds made. The resized
    copies, whose names are those of their content and size, stay where they are in any case.
    """
    directory = dataset_dir(config.dataset)
    own(directory)  # already here: some sources are first written to data.root
    source = read_source(config.data, config.submission)
    settings = {key: getattr(config, key) for key in ("data", "longtail", "bins", "folds")}
    work = Work(directory, settings, source.tables, beside=BESIDE)
    listing = _listing(source)
    if overwrite:
        shutil.rmtree(directory / PARTS, ignore_errors=True)  # every image is read again
    elif work.finished():
        _check_listing(directory, listing)
        return directory
    for note in source.notes:
        cli.say(f"note: {note}")
    class_ids = class_order(source.train["class_id"])
    train = cut_tail(source.train, class_ids, config.longtail)
    if config.data.limit is not None:
        train = few_images(train, config.data.limit)
        source = few_test_images(source, config.data)
    train, test, bad = _read_images(train, source.test, directory, config)
    classes = class_table(train, class_ids, config.bins)
    _check_classes(classes, source)
    pairs = _group(train, test, source.fields, config)
    label_of = dict(zip(classes["class_id"], classes["label"], strict=True))
    train["label"] = train["class_id"].map(label_of).astype(int)
    scenes, seen = _folds(train, config, source)
    _clear(directory)
    if config.data.limit is not None:
        source = few_rows(source, config.data, directory)
    outputs = [write_table(directory / SCENES, scenes).name] if len(scenes) else []
    outputs += _write(directory, train, test, classes, pairs, bad, source.fields)
    cut = (source.sample_submission, source.solution)  # to data.limit
    outputs += [path.name for path in cut if path and path.parent == directory]
    solution = source.solution
    if source.truth is not None:
        solution = write_table(directory / "solution.csv", source.truth)
        outputs.append("solution.csv")
    clean_up(directory, config.data)
    work.finish(
        outputs,
        metrics={"images": len(train), "classes": len(classes), "test_images": len(test)},
        submission=source.sheet.facts(),
        sample_submission=_posix(source.sample_submission),
        solution=_posix(solution),
        listing=listing,
        left_out=len(bad),
        scenes=seen,
    )
    return directory


def _read_images(
    train: pd.DataFrame, test: pd.DataFrame, directory: Path, config: Config
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Both tables with what the scan found; and the train images that were left out."""
    both = pd.concat([train.assign(split="train"), test.assign(split="test")], ignore_index=True)
    found = scan_images(both["path"].tolist(), directory, config.data)
    both["source"] = both["path"]
    both[["path", *FACTS, "problem"]] = found[["path", *FACTS, "problem"]]
    is_bad = both["problem"] != ""
    bad = both.loc[is_bad, ["split", "image_id", "source", "problem"]]
    bad = bad.rename(columns={"source": "path"})
    if len(bad):
        listed = write_table(directory / "bad_images.csv", bad)
        _report_bad(bad, listed, config.data.bad_images)
    good = both[~is_bad].drop(columns=["problem", "source"])
    train = good[good["split"] == "train"].drop(columns="split").reset_index(drop=True)
    test = good.loc[good["split"] == "test", ["image_id", "path", *FACTS]]
    return train, test.reset_index(drop=True), bad


def _report_bad(bad: pd.DataFrame, listed: Path, policy: str) -> None:
    lines = [f"  {row.path}: {row.problem}" for row in bad[:8].itertuples()]
    if len(bad) > 8:
        lines.append(f"  … and {len(bad) - 8} more")
    lines = "\n".join(lines)
    in_test = int((bad["split"] == "test").sum())
    if policy == "skip" and not in_test:
        cli.say(f"left out {len(bad)} train images that cannot be read ({listed}):\n{lines}")
        return
    hint = "Replace or remove these files, or set data.bad_images=skip to leave them out."
    if in_test:
        hint = (
            f"{in_test} of them are test images. The submission needs every one of those, so they "
            "cannot be skipped: unpack or download them again. "
        )
        hint += "data.bad_images=skip leaves out train images only."
    raise UserError(
        f"{len(bad)} images cannot be read (all of them in {listed}):\n{lines}\n{hint} Then run "
        "01 again: it continues, and reads only these and new files."
    )


def _check_classes(classes: pd.DataFrame, source: Source) -> None:
    empty = classes.loc[classes["count"] == 0, "class_id"]
    if len(empty):
        raise UserError(
            f"classes {some(empty)} have no readable image left; replace their files, or remove "
            f"the {len(empty)} classes from the competition's directory."
        )
    if len(classes) < 2:
        raise UserError(
            f"found {len(source.train)} train images of {len(classes)} class; expected at least "
            "two classes. Is data.root right?"
        )


def _group(
    train: pd.DataFrame, test: pd.DataFrame, fields: dict[str, pd.DataFrame], config: Config
) -> pd.DataFrame:
    """Add group_id to `train`: the smallest image_id among the train images of one photo, group or
    observation. Returns the pairs of duplicates."""
    tables = []
    for split, table in (("train", train), ("test", test)):
        values = observed(config.data, fields.get(split), table["image_id"])
        own = values.where(values == "", f"{split} " + values)  # ids of the two may be others'
        tables.append(table.assign(split=split, observation=own))
    every = pd.concat(tables, ignore_index=True)
    every = every.fillna({"class_id": "", "group": ""})
    order = every.assign(rank=every["split"] != "train").sort_values(["rank", "image_id"]).index
    every = every.loc[order].reset_index(drop=True)
    pairs, component = find_duplicates(every, config.data.near_duplicates)
    in_train = every["split"] == "train"
    ids = every.loc[in_train, "image_id"]
    train["group_id"] = ids.groupby(component[in_train]).transform("min").to_numpy()
    return pairs


def _folds(train: pd.DataFrame, config: Config, source: Source) -> tuple[pd.DataFrame, dict]:
    """Add fold to `train`, and to group_id the scenes. Returns the images of scenes (image_id,
    class_id, scene) and what the manifest says of them."""
    label, k, seed = train["label"].to_numpy(), config.folds.k, config.folds.seed
    keys, features, lacking = config.data.scenes, None, ""
    if keys.features == "network" and keys.mode != "never":
        from src.prepare.scene_network import pretrained_features  # torch, for no other part of 01

        features, lacking = pretrained_features(config)
        if lacking:
            cli.say(f"note: scenes are told by pixels, not by a network: {lacking}")
    listed = train.merge(source.train[["image_id", "path"]], on="image_id", suffixes=("", "_given"))
    found = find_scenes(listed.rename(columns={"path_given": "source"}), keys, features,
                        config.data.workers)  # fmt: skip
    size = pd.Series(found.scene).groupby(found.scene).transform("size").to_numpy()
    seen = found.facts | {"scenes": len(set(found.scene[size > 1].tolist()))}
    seen |= {"images": int((size > 1).sum()), "largest": int(size.max())}
    seen |= {"network_lacking": lacking} if lacking else {}
    groups = train["group_id"].to_numpy()
    if seen["scenes"]:
        without = make_folds(label, groups, k, seed)
        seen["split_without"] = round(split_by(without, found.scene), 4)
        train["group_id"] = joined(groups, found.scene, train["image_id"].to_numpy())
    train["fold"] = make_folds(label, train["group_id"].to_numpy(), k, seed)
    table = train[["image_id", "class_id"]].assign(scene=found.scene)
    table["scene"] = table.groupby("scene")["image_id"].transform("min")
    return table[size > 1], seen


def _clear(directory: Path) -> None:
    """Remove what earlier starts left, the manifest first, but for what this one has made."""
    (directory / MANIFEST).unlink(missing_ok=True)
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.name != "bad_images.csv":
            path.unlink()
        elif path.is_dir() and path.name not in ("images", PARTS):
            shutil.rmtree(path)


def _write(directory: Path, train, test, classes, pairs, bad, fields) -> list[str]:
    """Write all tables and figures; returns the names of the files."""
    write_table(directory / "folds.csv", beside(train[list(OURS)], fields.get("train")))
    write_table(directory / "classes.csv", classes)
    write_table(directory / "test.csv", beside(test, fields.get("test")))
    write_table(directory / "duplicates.csv", pairs)
    write_text(directory / "class_labels.txt", class_lines(classes))
    outputs = ["folds.csv", "classes.csv", "test.csv", "duplicates.csv", "class_labels.txt"]
    if len(bad):
        outputs.append("bad_images.csv")
    else:
        (directory / "bad_images.csv").unlink(missing_ok=True)
    both = pd.concat([train.assign(split="train"), test.assign(split="test")])
    paths = both.set_index(["split", "image_id"])["path"]
    return outputs + draw_figures(directory, train, classes, pairs, paths)


def _listing(source: Source) -> str:
    """A fingerprint of which images and classes there are, so that a skip can notice a change."""
    sha = hashlib.sha256()
    for table in (source.train, source.test):
        rows = sorted("\t".join(row) for row in table.itertuples(index=False, name=None))
        sha.update("\n".join([*rows, ""]).encode())
    return sha.hexdigest()


def _check_listing(directory: Path, listing: str) -> None:
    path = directory / MANIFEST
    if read_json(path).get("listing") != listing:
        raise UserError(
            f"{path}: made from other images than there are now: files were added, removed or "
            "renamed. Run again with --overwrite to prepare them anew, or put the files back."
        )


def _posix(path: Path | None) -> str | None:
    return None if path is None else path.as_posix()
