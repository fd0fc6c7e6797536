"""Small real artifacts as 01, 02, 03 and 05 would leave them: scikit-learn's digits, long-tailed,
with pixels as features, logistic regression as stage 1 and cRT, and class means as NCM.

Paths are relative (`runs/…`), so a test first changes into a directory of its own.
"""

import hashlib
import io
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from src.artifacts.dataset import Classes
from src.artifacts.evidence import Looked
from src.artifacts.files import read_json, sha256, write_bytes, write_json, write_table
from src.artifacts.heads import save_head
from src.artifacts.predictions import Predictions
from src.artifacts.work import MANIFEST, RUNS
from src.config.read import parse_config
from src.config.schema import Config
from src.fusion import build_steps
from src.fusion.step import Step
from src.logits import class_means, head_logits

DATASET = "digits"
# ids that a careless reader turns into numbers or holes
CLASS_IDS = ["00012", "1e5", "4780", "NA", "n02119789", "7", "007", "null", "3.0", "-1"]
ODD_IDS = ["00123", "1e5", "NA", "123"]
FOLDS = 3
TRAIN = [60, 45, 34, 25, 19, 14, 11, 8, 6, 4]  # images per label
NAMES = ("stage1", "crt", "ncm")
WEIGHTS = b"a network"  # of every fold; nothing here reads them


@dataclass(frozen=True)
class World:
    """Images, their folds, and every fold's heads."""

    ids: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    fold: np.ndarray
    test_ids: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray
    heads: dict[int, dict[str, tuple[str, dict[str, np.ndarray]]]]

    @property
    def num_classes(self) -> int:
        return len(CLASS_IDS)

    def logits(self, name: str, fold: int, features: np.ndarray) -> np.ndarray:
        kind, arrays = self.heads[fold][name]
        return head_logits(features, arrays, kind).astype(np.float32)


@cache
def digits_world() -> World:
    rng = np.random.default_rng(0)
    pixels, digit = load_digits(return_X_y=True)
    pixels = (pixels / 16 + rng.normal(0, 0.25, pixels.shape)).astype(np.float32)
    train, test = [], []
    for label, count in enumerate(TRAIN):
        rows = rng.permutation(np.flatnonzero(digit == label))
        train += rows[:count].tolist()
        test += rows[count : count + 20].tolist()
    fold = np.concatenate([np.arange(count) % FOLDS for count in TRAIN])
    fold[-1] = -1  # one image of the rarest class is in every training side
    ids = np.array(ODD_IDS + [f"im{row:05d}" for row in train[len(ODD_IDS) :]])
    test_ids = np.array(ODD_IDS + [f"t{row:05d}" for row in test[len(ODD_IDS) :]])
    heads = {k: _fit(pixels[train][fold != k], digit[train][fold != k]) for k in range(FOLDS)}
    return World(ids, pixels[train], digit[train], fold, test_ids, pixels[test], digit[test], heads)


def _fit(f: np.ndarray, y: np.ndarray) -> dict:
    heads = {}
    for name, weight in (("stage1", None), ("crt", "balanced")):
        model = LogisticRegression(C=1.0, class_weight=weight, max_iter=60).fit(f, y)
        arrays = {"weight": model.coef_, "bias": model.intercept_}
        heads[name] = ("linear", {k: v.astype(np.float32) for k, v in arrays.items()})
    means = class_means(f, y, len(CLASS_IDS))
    heads["ncm"] = ("cosine", {"weight": means, "scale": np.float32(1)})
    return heads


def with_random_labels(world: World, seed: int) -> World:
    """The same images with labels that mean nothing."""
    return replace(world, labels=np.random.default_rng(seed).permutation(world.labels))


def config(**sections) -> Config:
    return parse_config(
        {"data": {"root": f"data/raw/{DATASET}"}, "bins": {"many": 30, "few": 12}} | sections
    )


def step(name: str, keys: dict | None = None, **sections) -> Step:
    """One post-hoc step with its keys, in a config with these sections."""
    posthoc = {"posthoc": {"steps": [{"name": name} | (keys or {})]}}
    return build_steps(config(**posthoc, **sections))[0]


def count(monkeypatch, owner, name: str) -> list:
    """A list that grows with every call of `owner.name`, which still does its work."""
    calls, real = [], getattr(owner, name)

    def counted(*args, **kwargs):
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


def write_dataset(world: World, *, sample: bool = True, solution: bool = True) -> Path:
    """runs/digits/folds and data/raw/digits, as 01 leaves them."""
    directory, raw = RUNS / DATASET / "folds", Path("data/raw") / DATASET
    class_ids = np.array(CLASS_IDS)
    counts = np.bincount(world.labels, minlength=world.num_classes)
    images = pd.DataFrame(
        {
            "image_id": world.ids,
            "path": [f"{i}.png" for i in world.ids],
            "class_id": class_ids[world.labels],
            "label": world.labels,
            "fold": world.fold,
            "group_id": np.arange(len(world.ids)),
            "width": 8,
            "height": 8,
            "sha1": "",
            "phash": "",
        }
    ).sort_values("image_id")
    band = np.select([counts > 30, counts < 12], ["many", "few"], "medium")
    classes = {"label": range(len(counts)), "class_id": class_ids, "class_name": class_ids}
    write_table(directory / "folds.csv", images)
    write_table(directory / "classes.csv", pd.DataFrame(classes | {"count": counts, "bin": band}))
    test = pd.DataFrame({"image_id": world.test_ids, "path": world.test_ids})
    write_table(directory / "test.csv", test)
    columns = {"id_column": "Id", "label_column": "Category"}
    if sample:
        write_table(
            raw / "sample_submission.csv", pd.DataFrame({"Id": world.test_ids, "Category": "7"})
        )
    if solution:
        truth = {"Id": world.test_ids, "Category": class_ids[world.test_labels]}
        write_table(raw / "solution.csv", pd.DataFrame(truth))
    manifest = {
        "submission": columns,
        "sample_submission": str(raw / "sample_submission.csv") if sample else None,
        "solution": str(raw / "solution.csv") if solution else None,
    }
    seal(directory, **manifest)
    return directory


def seal(directory: Path, **facts) -> None:
    """Write the manifest, with true digests of the files that are there, as `Work.finish` does.
    Of an older one other facts are kept: what is there is what the stage would have made."""
    path = directory / MANIFEST
    files = [f for f in sorted(directory.glob("*")) if f.is_file() and f != path]
    old = read_json(path) if path.is_file() else {}
    write_json(path, old | facts | {"outputs": {f.name: sha256(f) for f in files}})


def write_experiment(world: World, experiment: str, *, noise: float = 0.0, seed: int = 0) -> Path:
    """Stages 1 and 2 of an experiment on all folds; `noise` on the logits makes it a worse one."""
    home, rng = RUNS / DATASET / experiment, np.random.default_rng(seed)
    for name in NAMES:
        for fold in range(FOLDS):
            held_out = world.fold == fold
            f = world.features[held_out]
            logits = world.logits(name, fold, f) + noise * rng.normal(size=(len(f), 10))
            stage = home / "stage1" if name == "stage1" else home / "stage2" / name
            oof = Predictions(
                world.ids[held_out], logits, world.labels[held_out], world.fold[held_out], f
            )
            write_fold(stage / f"fold{fold}", oof, world.heads[fold][name])
    return home


def write_fold(directory: Path, oof: Predictions, head) -> None:
    oof.save(directory / "oof.npz")
    save_head(directory / "head.safetensors", *head)
    inputs = folds_input()
    if directory.parent.name == "stage1":
        write_bytes(directory / "weights.safetensors", WEIGHTS)
    else:
        inputs["weights.safetensors"] = hashlib.sha256(WEIGHTS).hexdigest()
    seal(directory, inputs=inputs, select="last")


def write_predictions(world: World, experiment: str, names=NAMES, *, noise=0.0, seed=0) -> Path:
    """Test logits of heads: the mean over the folds' models, as 05 leaves them."""
    directory, rng = RUNS / DATASET / experiment / "predict", np.random.default_rng(seed)
    f, count = world.test_features, len(world.test_ids)
    for name in names:
        logits = np.mean([world.logits(name, k, f) for k in range(FOLDS)], axis=0)
        logits = logits + noise * rng.normal(size=logits.shape)
        unknown = np.full(count, -1)
        Predictions(world.test_ids, logits, unknown, unknown).save(directory / f"{name}.npz")
    seal(directory, inputs=folds_input())
    return directory


def digits_runs(**noise: float) -> World:
    """The digits prepared in the working directory, and experiments that went through 05, by name
    with the noise on their logits."""
    found = digits_world()
    write_dataset(found)
    for name, strength in noise.items():
        write_experiment(found, name, noise=strength, seed=1)
        write_predictions(found, name, noise=strength, seed=2)
    return found


def write_evidence(home: Path, images: pd.DataFrame, predicted: np.ndarray) -> Looked:
    """predict/evidence of an experiment as 05 leaves it: rows of folds.csv as out-of-fold images,
    each also as a test image; a map that falls from left to right, and a box in the middle."""
    count, label = len(images), images["label"].to_numpy()
    kinds = np.where(predicted == label, "right", "wrong")
    shade = np.linspace(1, 0, 4, dtype=np.float16)[None, None].repeat(2 * count, 0).repeat(3, 1)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(picture, "JPEG")
    looked = Looked(
        image_id=np.tile(images["image_id"].to_numpy(dtype=str), 2),
        split=np.repeat(["oof", "test"], count),
        kind=np.concatenate([kinds, np.full(count, "most confident")]),
        label=np.concatenate([label, np.full(count, -1)]),
        predicted=np.tile(predicted, 2),
        explained=np.tile(predicted, 2),
        fold=np.tile(images["fold"].to_numpy(), 2),
        probability=np.linspace(0.9, 0.2, 2 * count),
        jpeg=[picture.getvalue()] * (2 * count),
        size=8,
        boxes={"object": np.tile(np.float32([2, 2, 6, 6]), (2 * count, 1, 1))},
        maps={"class_activation": shade},
    )
    directory = home / "predict" / "evidence"
    looked.save(directory / "evidence.npz")
    inputs = {"folds.csv": sha256(home.parent / "folds" / "folds.csv")}
    if (oof := home / "posthoc" / "oof.npz").is_file():
        inputs["posthoc/oof.npz"] = sha256(oof)
    seal(directory, inputs=inputs)
    return looked


def folds_input() -> dict[str, str]:
    return {"folds.csv": sha256(RUNS / DATASET / "folds" / "folds.csv")}


def some_classes(num: int, bins=None, counts=None, text=None) -> Classes:
    """K classes of which nothing else matters: without bins all are in one."""
    bins = np.zeros(num, dtype=np.int64) if bins is None else np.asarray(bins)
    counts = np.full(num, 10) if counts is None else np.asarray(counts)
    return Classes(num, bins, tuple(map(str, range(num))), counts, text)
