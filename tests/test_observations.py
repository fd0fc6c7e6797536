"""Images of one specimen: a fold, a prediction and a row in the submission of their own."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax

import src.fusion.observations as module
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, read_table, sha256, write_table
from src.artifacts.heads import save_head
from src.artifacts.predictions import Predictions
from src.config.observations import Observations as Keys
from src.config.read import parse_config
from src.ensemble.ensemble import ensemble
from src.errors import UserError
from src.fusion.observations import Observations, fitted_strength, numbered
from src.posthoc.calibrate import posthoc
from src.prepare.prepare import prepare
from src.report.context import gather
from tests import prepare_kit
from tests.fabricate import (
    DATASET,
    config,
    digits_world,
    seal,
    write_dataset,
    write_experiment,
    write_predictions,
)

HOME = Path("runs") / DATASET / "exp"
ONLY = {"posthoc": {"heads": ["stage1"]}, "ensemble": {"members": ["stage1"]}}
RULE = parse_config({}).judge


# ---- the formulae -----------------------------------------------------------------------------


def slow(logits: np.ndarray, keys: Keys) -> np.ndarray:
    """z of one observation's images [m, K], from the formulae."""
    log_p = log_softmax(logits.astype(float), 1)
    if len(logits) == 1:
        return logits[0]
    if keys.pool == "max":
        return log_softmax(log_p.max(0))
    weight = np.ones(len(log_p))
    if keys.pool == "attention":
        p = np.exp(log_p)
        weight = np.exp(keys.strength * (log_p.max(1) if keys.confidence == "max" else
                                         (p * log_p).sum(1)))  # fmt: skip
    return log_softmax(weight @ log_p / weight.sum())


@pytest.mark.parametrize("room", [1, 40, 2**22])  # logits in a chunk: one observation, some, all
@pytest.mark.parametrize(
    "keys",
    [
        Keys(), Keys(pool="max"), Keys(pool="attention", strength=1.7),
        Keys(pool="attention", strength=3, confidence="entropy"),
    ],
)  # fmt: skip
def test_images_share_what_the_formulae_say(keys, room, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", room)
    rng = np.random.default_rng(0)
    values = np.where(rng.random(57) < 0.3, " ", rng.integers(0, 14, 57).astype(str))
    logits = 3 * rng.normal(size=(57, 7)).astype(np.float32)
    observed = Observations(numbered(np.arange(57).astype(str), values), keys)
    found = observed.pool(logits)
    assert len(found) == len(set(values) - {" "}) + (values == " ").sum()
    for u, first in enumerate(observed.first):
        same = [first] if values[first] == " " else np.flatnonzero(values == values[first])
        assert first == same[0]
        np.testing.assert_allclose(found[u], slow(logits[same], keys), atol=1e-5)
    assert (np.diff(observed.first) > 0).all()
    rows = np.concatenate([rows for rows, _ in observed.parts(7)])
    assert sorted(rows) == list(range(57)) and (np.diff(observed.of[rows]) >= 0).all()


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_one_image_alone_keeps_its_bytes(pool):
    logits = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    alone = Observations(numbered(np.arange(9).astype(str), np.full(9, "")), Keys(pool=pool))
    assert alone.pool(logits).tobytes() == logits.tobytes()


def specimens(blurred: float, seed: int = 0, images: int = 3, num: int = 400):
    """By fold, logits and labels of specimens with `images` images each; a share is blurred: its
    logits are small, and only noise."""
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.integers(0, 5, num), images)
    clear = rng.random(num * images) >= blurred
    logits = np.where(clear[:, None], 2.5 * np.eye(5)[label], 0) + rng.normal(size=(len(label), 5))
    of, fold = np.repeat(np.arange(num), images), np.repeat(np.arange(num) % 3, images)
    by = {k: np.flatnonzero(fold == k) for k in range(3)}
    keys = Keys(pool="attention", strength=None)
    observed = {k: Observations(pd.factorize(of[r])[0], keys) for k, r in by.items()}
    return {k: logits[r] for k, r in by.items()}, {k: label[r] for k, r in by.items()}, observed


def test_pooling_raises_accuracy_and_attention_is_kept_where_images_differ():
    logits, labels, observed = specimens(0.5)
    found = fitted_strength(logits, labels, observed, "accuracy", RULE)

    def right(strength: float) -> float:
        hits = [observed[k].with_strength(strength).pool(logits[k]).argmax(1)
                == labels[k][observed[k].first] for k in logits]  # fmt: skip
        return np.concatenate(hits).mean()

    alone = np.concatenate([logits[k].argmax(1) == labels[k] for k in logits]).mean()
    assert found.kept and found.value > 0 and right(found.value) > right(0) > alone + 0.1
    facts = {"strength": found.value, "kept": True, "reason": found.reason, **found.gain.named()}
    assert found.facts() == facts
    assert found.gain.value == pytest.approx(
        np.mean([np.mean(observed[k].with_strength(b).pool(logits[k]).argmax(1)
                         == labels[k][observed[k].first]) * len(observed[k].first)
                 for k, b in found.per_fold.items()]) * 3 / 400 - right(0)
    )  # fmt: skip


def test_where_all_images_are_alike_the_mean_stays():
    kept = 0
    for seed in range(12):
        found = fitted_strength(*specimens(0.0, seed, num=120), "accuracy", RULE)
        kept += found.kept
        assert found.kept or found.value == 0.0 == max(found.per_fold.values())
    assert kept <= 4


def test_where_the_surest_image_is_wrong_the_mean_stays_as_it_is():
    logits, labels, observed = specimens(0.0, num=90)
    for fold in logits:  # the first of three images is sure of anything
        rng = np.random.default_rng(fold)
        logits[fold][::3] = 4 * rng.normal(size=logits[fold][::3].shape)
    found = fitted_strength(logits, labels, observed, "accuracy", RULE)
    assert not found.kept and found.value == 0.0 and tuple(found.gain) == (0.0, 0.0)


def test_a_strength_that_is_given_is_not_fitted():
    logits, labels, observed = specimens(0.5, num=30)
    fixed = {
        k: Observations(o.of, Keys(pool="attention", strength=2.0)) for k, o in observed.items()
    }
    found = fitted_strength(logits, labels, fixed, "accuracy", RULE)
    assert found.value == 2.0 and set(found.per_fold.values()) == {2.0}
    one = {0: logits[0]}, {0: labels[0]}, {0: observed[0]}
    found = fitted_strength(*one, "accuracy", RULE)
    assert found.value == 0.0 and "one fold" in found.reason


def test_keys_that_need_each_other():
    with pytest.raises(UserError, match="'specimen' is not among data.columns"):
        parse_config({"data": {"observation": "specimen"}})
    with pytest.raises(UserError, match="observations.pool .*data.observation names no column"):
        parse_config({"observations": {"pool": "max"}})


# ---- 04 and 06 on fabricated predictions ------------------------------------------------------


def observing(**sections):
    data = {"root": f"data/raw/{DATASET}", "columns": ["specimen"], "observation": "specimen"}
    return config(data=data, **ONLY, **sections)


def with_specimens(world, size: int) -> None:
    """Name images of one class and fold as one specimen, `size` at a time; likewise test images."""
    directory = write_dataset(world)
    images, test = read_table(directory / "folds.csv"), read_table(directory / "test.csv")
    group = images["label"] + "/" + images["fold"]
    number = images.groupby(group).cumcount() // size
    images["specimen"] = (group + "/" + number.astype(str)) if size > 1 else ""
    label = pd.Series(world.test_labels.astype(str), index=world.test_ids)[test["image_id"]]
    number = test.groupby(label.to_numpy()).cumcount() // size
    test["specimen"] = (label.to_numpy() + "/t" + number.astype(str)) if size > 1 else ""
    write_table(directory / "folds.csv", images)
    write_table(directory / "test.csv", test)
    seal(directory)


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return digits_world()


def results(settings) -> dict[str, bytes]:
    write_predictions(digits_world(), "exp")
    posthoc(settings, "exp", overwrite=True)
    found = ensemble([settings], ["exp"], overwrite=True)
    files = [HOME / "posthoc" / name for name in ("oof.npz", "table.csv", "posthoc.json")]
    files += [found.submission, found.submission.with_suffix(".npz")]
    return {path.name: path.read_bytes() for path in files}


def test_observations_of_one_image_change_nothing(world):
    with_specimens(world, 1)
    write_experiment(world, "exp")
    data = {"root": f"data/raw/{DATASET}", "columns": ["specimen"]}
    assert results(observing()) == results(config(data=data, **ONLY))


def test_04_and_06_score_specimens_and_their_images_share_a_class(world):
    with_specimens(world, 3)
    write_experiment(world, "exp", noise=2.0)
    plain = posthoc(config(metric="accuracy", **ONLY), "exp")
    settings = observing(metric="accuracy")
    write_predictions(world, "exp", noise=2.0)
    table = posthoc(settings, "exp", overwrite=True)
    assert table["accuracy"].iloc[0] > plain["accuracy"].iloc[0] + 0.05
    dataset = load_dataset(DATASET)
    oof = np.load(HOME / "posthoc" / "oof.npz")
    assert len(oof["image_id"]) == (dataset.images["fold"] >= 0).sum()  # images, not yet shared
    found = ensemble([settings], ["exp"])
    assert found.oof.iloc[-1]["accuracy"] == pytest.approx(table.iloc[0]["accuracy"])
    shown = gather(DATASET, ["exp"], [settings]).experiments[0].stages
    for stage, row in (("stage1", 0), ("posthoc", -1)):  # the report counts specimens, too
        assert shown[stage].scores["accuracy"] == pytest.approx(table.iloc[row]["accuracy"])
    rows = dataset.test.assign(said=read_table(found.submission)["Category"])
    assert rows.groupby("specimen")["said"].nunique().max() == 1
    assert rows["said"].nunique() > 3
    facts = read_json(found.submission.with_suffix(".manifest.json"))["observations"]
    assert facts["pool"] == "mean" and list(facts["attention"]) == ["exp/stage1"]
    with pytest.raises(UserError, match="data.observation"):
        ensemble([settings, config(metric="accuracy", **ONLY)], ["exp", "other"])


def test_folds_that_split_a_specimen_and_tables_without_the_column_are_refused(world):
    with_specimens(world, 3)
    write_experiment(world, "exp")
    path = Path("runs") / DATASET / "folds" / "folds.csv"
    images = read_table(path)
    write_table(path, images.assign(specimen="all"))
    seal(path.parent)
    write_experiment(world, "exp")
    with pytest.raises(UserError, match="folds.csv: images of one specimen are in different folds"):
        posthoc(observing(), "exp")
    write_table(path, images.drop(columns="specimen"))
    seal(path.parent)
    write_experiment(world, "exp")
    with pytest.raises(UserError, match="folds.csv: column 'specimen' .*run 01 with --overwrite"):
        posthoc(observing(), "exp")


# ---- 01, 04 and 06 on a fabricated competition ------------------------------------------------


def competition(root: Path, by: str = "observation_id", **test_columns) -> dict:
    """Two classes with six specimens of two images each and one image alone; three test specimens
    of two. The sample asks for observations or images."""
    rows, number = [], 0
    (root / "images").mkdir(parents=True)
    for label in ("cat", "dog"):
        for i in range(13):
            specimen = f"{label}{i // 2}" if i < 12 else ""
            rows.append({"image_id": f"im{number:02d}", "class_id": label,
                         "observation_id": specimen})  # fmt: skip
            number += 1
    test = [{"image_id": f"te{i}", "observation_id": f"cat{i // 2}"} for i in range(6)]
    for i, row in enumerate([*rows, *test]):
        prepare_kit.photo(i, (16, 16)).save(root / "images" / f"{row['image_id']}.png")
    pd.DataFrame(rows).to_csv(root / "train.csv", index=False)
    pd.DataFrame(test).to_csv(root / "test.csv", index=False)
    ids = {"observation_id": ["cat2", "cat0", "cat1"], "image_id": [f"te{i}" for i in range(6)]}[by]
    sample = {by: ids, "class_id": "cat"}
    pd.DataFrame(sample).to_csv(root / "sample_submission.csv", index=False)
    solution = {by: ids, "class_id": ["dog"] * len(ids)}
    pd.DataFrame(solution).to_csv(root / "solution.csv", index=False)
    data = {
        "source": "csv", "root": str(root), "name": "pets", "train": "train.csv",
        "test": "test.csv", "train_images": "images", "test_images": "images", "suffix": ".png",
        "workers": 0, "columns": ["observation_id"], "observation": "observation_id",
        "near_duplicates": None,
    }  # fmt: skip
    tree = {"data": data, "folds": {"k": 3}, "stage2": [], "posthoc": {"steps": []}}
    return tree | {"ensemble": {"members": ["stage1"]}, "metric": "accuracy"}


def predicted(home: Path, dataset) -> None:
    """02 and 05: logits that say dog of the second image of each specimen, loudly, and cat of the
    first, softly."""
    inputs = {"folds.csv": sha256(dataset.directory / "folds.csv")}

    def logits(ids) -> np.ndarray:
        second = np.array([int(i[2:]) % 2 for i in ids])
        return np.where(second[:, None], [0.0, 3.0], [1.0, 0.0]).astype(np.float32)

    for k in dataset.folds:
        part = dataset.held_out(k).sort_values("image_id")
        ids, directory = part["image_id"].to_numpy(str), home / "stage1" / f"fold{k}"
        numbers = part["label"].to_numpy(), part["fold"].to_numpy()
        features = logits(ids)
        Predictions(ids, features, *numbers, features).save(directory / "oof.npz")
        weight = {"weight": np.eye(2), "bias": np.zeros(2)}
        save_head(directory / "head.safetensors", "linear", weight)
        seal(directory, inputs=inputs, select="last")
    ids = np.sort(dataset.test["image_id"].to_numpy(str))
    blank = np.full(len(ids), -1)
    Predictions(ids, logits(ids), blank, blank).save(home / "predict" / "stage1.npz")
    seal(home / "predict", inputs=inputs)


@pytest.mark.parametrize("by", ["observation_id", "image_id"])
def test_a_competition_of_observations_from_start_to_finish(tmp_path, monkeypatch, by):
    monkeypatch.chdir(tmp_path)
    settings = parse_config(competition(Path("raw"), by))
    directory = prepare(settings)
    images = read_table(directory / "folds.csv")
    named = images[images["observation_id"] != ""]
    assert named.groupby("observation_id")["fold"].nunique().max() == 1
    assert named.groupby("observation_id")["group_id"].nunique().max() == 1
    assert images[images["observation_id"] == ""]["group_id"].nunique() == 2
    dataset, home = load_dataset("pets"), Path("runs/pets/exp")
    predicted(home, dataset)
    table = posthoc(settings, "exp")
    assert table["accuracy"].iloc[0] == pytest.approx(8 / 14)  # all specimens are called dogs
    found = ensemble([settings], ["exp"])
    sample = read_table("raw/sample_submission.csv")
    expected = sample.assign(class_id="dog")
    pd.testing.assert_frame_equal(read_table(found.submission), expected)
    assert found.score["accuracy"] == 1.0 and found.scored == found.images == len(sample)
    assert len(np.load(found.submission.with_suffix(".npz"))["logits"]) == 6


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train.csv", lambda t: t.assign(class_id=["dog", *t["class_id"][1:]]),
         r"train.csv: 1 observations \('observation_id'\) .*'cat0 \(cat, dog\)'"),
        ("test.csv", lambda t: t.drop(columns="observation_id"),
         r"test.csv: column 'observation_id' \(data.columns\) is missing"),
        ("sample_submission.csv", lambda t: t.replace("cat1", "cat9"), "'cat1'.*differ|'cat9'"),
        ("solution.csv", lambda t: t.replace("cat1", "cat9"), "'cat9'"),
        ("test.csv", lambda t: t.replace({"te0": "cat2", "cat0": ""}),
         "'cat2' have no value of 'observation_id'"),
    ],
)  # fmt: skip
def test_01_names_what_does_not_go_together(tmp_path, monkeypatch, file, change, message):
    monkeypatch.chdir(tmp_path)
    settings = parse_config(competition(Path("raw")))
    path = Path("raw") / file
    change(read_table(path)).to_csv(path, index=False)
    if not Path("raw/images/cat2.png").exists():
        prepare_kit.photo(99, (16, 16)).save("raw/images/cat2.png")
    with pytest.raises(UserError, match=message):
        prepare(settings)
