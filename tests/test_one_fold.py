"""`--folds 0` through 02 … 06: a baseline of one fold, honest about being one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import src.ensemble.expected as expected
from src.artifacts.dataset import finished_networks, load_dataset
from src.artifacts.files import read_json
from src.artifacts.parts import PARTS, caveat, check_posthoc, parts_of
from src.artifacts.predictions import load_predictions
from src.artifacts.work import RUNS
from src.ensemble.ensemble import ensemble
from src.errors import UserError
from src.fusion.network import without_fold
from src.fusion.store import load_recipe
from src.inference.evidence import evidence
from src.inference.predict import predict
from src.posthoc.calibrate import posthoc
from src.rebalance.stage2 import stage2
from src.training.stage1 import stage1
from tests.conftest import digits_config
from tests.fabricate import DATASET, config, digits_runs, write_predictions

HOME = RUNS / DATASET / "exp"
CONFIG = config()


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return digits_runs(exp=0.0)


def chosen(*folds: str):
    return load_dataset(DATASET).choose(list(folds))


def test_several_folds_are_their_own_parts(world):
    data = load_dataset(DATASET)
    held = data.images[data.images["fold"].isin([0, 2])]
    found = parts_of(chosen("0", "2"), held["image_id"].to_numpy())
    assert found.tolist() == held["fold"].tolist()


def test_parts_of_one_fold_keep_groups_together_and_share_the_classes(world):
    data = chosen("1")
    held = data.held_out(1).copy()
    held["group_id"] = [f"g{i // 2}" for i in range(len(held))]  # pairs
    held.loc[held.index[:6], "group_id"] = ""  # older tables: each image alone
    data = replace(data, images=pd.concat([data.images[data.images["fold"] != 1], held]))
    order = np.random.default_rng(0).permutation(len(held))
    ids = held["image_id"].to_numpy()[order]
    part = pd.Series(parts_of(data, ids), index=ids)
    assert part.loc[held["image_id"]].tolist() == parts_of(data, held["image_id"]).tolist()
    grouped = held[held["group_id"] != ""]
    of_group = part.loc[grouped["image_id"]].groupby(grouped["group_id"].to_numpy())
    assert (of_group.nunique() == 1).all()
    assert sorted(part.unique()) == list(range(PARTS))
    images = parts_of(chosen("1"), chosen("1").held_out(1)["image_id"])  # each image is a group
    table = pd.crosstab(chosen("1").held_out(1)["label"].to_numpy(), images)
    assert (table.max(axis=1) - table.min(axis=1) <= 1).all()


def test_one_group_alone_cannot_be_judged(world):
    data = chosen("0")
    alone = replace(data, images=data.images.assign(group_id="same"))
    with pytest.raises(UserError, match="one group alone"):
        parts_of(alone, data.held_out(0)["image_id"])


def test_04_takes_the_folds_it_is_told_and_says_so(world):
    for name in ("stage1", "stage2/crt", "stage2/ncm"):
        for fold in (1, 2):
            (HOME / name / f"fold{fold}" / "manifest.json").unlink()
    with pytest.raises(UserError, match="folds 1 2 of 0 1 2 are missing.*--folds"):
        posthoc(CONFIG, "exp")
    table = posthoc(CONFIG, "exp", folds=["0"])
    held = load_dataset(DATASET).held_out(0)
    oof = load_predictions(HOME / "posthoc/oof.npz", world.num_classes)
    assert oof.image_id.tolist() == held["image_id"].tolist() and set(oof.fold) == {0}
    recipe = load_recipe(HOME / "posthoc")
    assert "Fold 0 of 3 alone" in recipe["caveat"] and f"{len(held)} of" in recipe["caveat"]
    assert without_fold(recipe, 0, HOME)["steps"] == []  # nothing was chosen without it
    tried = [trial for trial in recipe["tried"] if trial["per_fold"]]
    assert tried and all(set(t["per_fold"]) == set("01234") for t in tried)
    labels = held.set_index("image_id").loc[oof.image_id, "label"]
    right = (oof.logits.argmax(1) == labels).groupby(labels.to_numpy()).mean().mean()
    assert table["balanced_accuracy"].iloc[-1] == pytest.approx(right)


def test_what_is_chosen_for_a_part_never_saw_it(world):
    """Prefitted on the other parts by hand: the temperature of each part."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    only = config(posthoc={"steps": ["temperature"], "heads": ["stage1"]})
    posthoc(only, "exp", folds=["0"])
    trial = next(t for t in load_recipe(HOME / "posthoc")["tried"] if t["head"] == "stage1")
    oof = load_predictions(HOME / "stage1/fold0/oof.npz", world.num_classes)
    part = parts_of(chosen("0"), oof.image_id)

    def nll(t: float, rows: np.ndarray) -> float:
        p = log_softmax(oof.logits[rows].astype(float) / t, axis=1)
        return -p[np.arange(rows.sum()), oof.label[rows]].mean()

    for k in range(PARTS):
        best = minimize_scalar(nll, (0.05, 20), args=(part != k,), bounds=(0.05, 20)).x
        found = (trial["per_fold"][str(k)] or {"T": 1.0})["T"]
        assert nll(found, part != k) == pytest.approx(nll(best, part != k), rel=5e-3)


def test_06_goes_by_one_fold_and_later_folds_are_asked_for(world, monkeypatch):
    posthoc(CONFIG, "exp", folds=["0"])
    names = ("stage1", "crt", "ncm", "posthoc")
    for heads in world.heads.values():
        monkeypatch.setitem(heads, "posthoc", heads["stage1"])
    write_predictions(world, "exp", names)
    with pytest.raises(UserError, match="made of fold 0 alone, without folds 1, 2.*--folds 0"):
        ensemble([CONFIG], ["exp"])
    seen = []
    real = expected.forecast
    monkeypatch.setattr(expected, "forecast", lambda e, seed: seen.append(e) or real(e, seed))
    found = ensemble([CONFIG], ["exp"], folds=["0"])
    assert "Fold 0 of 3 alone" in found.caveat
    data = load_dataset(DATASET)
    counts = data.counts(data.training(0))
    assert (seen[0].seen == counts[seen[0].labels]).all()  # of the fold's network, not of a part
    assert len(seen[0].labels) == len(data.held_out(0))
    facts = read_json(found.submission.with_name("exp.manifest.json"))
    assert facts["folds"] == [0]
    posthoc(CONFIG, "exp")  # all folds are there: the whole is made, and holds fold 0, too
    assert check_posthoc(HOME / "posthoc", chosen("0")) == [0, 1, 2]
    assert caveat(data) is None


def test_full_alone_holds_nothing_out(world):
    with pytest.raises(UserError, match="--folds full: it holds no images out, and 04"):
        posthoc(CONFIG, "exp", folds=["full"])
    with pytest.raises(UserError, match="--folds 7"):
        posthoc(CONFIG, "exp", folds=["7"])


def test_a_fold_that_is_asked_for_must_be_finished(world):
    assert [p.name for p in finished_networks(HOME, chosen("1"))] == ["fold1"]
    (HOME / "stage1/fold1/manifest.json").unlink()
    assert len(finished_networks(HOME, load_dataset(DATASET))) == 2
    with pytest.raises(UserError, match="fold1, which --folds asks for.*--folds 1"):
        finished_networks(HOME, chosen("0", "1"))


def test_one_fold_through_all_stages(digits):
    settings, folds = digits_config("train.epochs=1"), ["0"]
    assert stage1(settings, "base", folds, False)["fold"].tolist() == ["fold0"]
    assert set(stage2(settings, "base", False, folds)["fold"]) == {"fold0"}
    posthoc(settings, "base", folds=folds)
    paths = predict(settings, "base", False, folds)
    assert evidence(settings, "base", False, folds).is_file() and paths["posthoc"].is_file()
    assert read_json(paths["posthoc"].with_name("manifest.json"))["networks"] == ["fold0"]
    found = ensemble([settings], ["base"], folds=folds)
    sample = pd.read_csv(Path("data/raw/digits/sample_submission.csv"), dtype=str)
    assert pd.read_csv(found.submission, dtype=str).iloc[:, 0].equals(sample.iloc[:, 0])
    assert 0.0 <= found.oof["balanced_accuracy"].iloc[-1] <= 1.0
