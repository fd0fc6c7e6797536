"""Is the ensemble worth it: diversity, what each member brings, the best one, folds they share."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from src.artifacts.files import read_json
from src.config.judge import Judge
from src.ensemble.choice import choose
from src.ensemble.combiner import Pool
from src.ensemble.diversity import pairs
from src.ensemble.ensemble import ensemble
from src.ensemble.members import log_probabilities
from src.ensemble.review import combined, review
from src.errors import UserError
from src.posthoc.calibrate import posthoc
from src.report.context import gather
from src.report.page import write_report
from tests.fabricate import (
    CLASS_IDS,
    DATASET,
    config,
    digits_runs,
    seal,
    write_dataset,
    write_experiment,
    write_predictions,
)

RUNS = Path("runs") / DATASET


def test_the_numbers_of_a_pair_by_hand():
    truth = np.zeros(10, int)
    a = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])  # right on the first six
    b = np.array([0, 0, 0, 0, 1, 1, 0, 1, 1, 2])  # n11 4, n10 2, n01 1, n00 3
    row = pairs(["x", "y"], [a, b], truth)[0]
    assert (row["a"], row["b"]) == ("x", "y")
    assert row["disagreement"] == pytest.approx(0.4)  # also on the last: wrong in two ways
    assert row["both_wrong"] == pytest.approx(0.3)
    assert row["error_correlation"] == pytest.approx(np.corrcoef(a != 0, b != 0)[0, 1])
    assert row["q"] == pytest.approx((4 * 3 - 1 * 2) / (4 * 3 + 1 * 2))
    same = pairs(["x", "y", "z"], [a, a, truth], truth)
    assert len(same) == 3 and same[0]["q"] == pytest.approx(1)
    assert same[1]["q"] is None and same[1]["error_correlation"] is None  # z is never wrong


def pool(strengths, seed=0, n=600, k=5) -> tuple[Pool, np.ndarray]:
    """Members that know the labels more or less, each with noise of its own, and folds."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    logits = [s * np.eye(k)[labels] + rng.normal(size=(n, k)) for s in strengths]
    return Pool([log_probabilities(z) for z in logits], labels, "accuracy"), np.arange(n) % 4


def judged(strengths, combiner="mean", **keys):
    made, fold = pool(strengths)
    names = list("abcdef"[: len(strengths)])
    wanted = config(metric="accuracy", ensemble={"combiner": combiner} | keys)
    return (*combined(names, made, fold, wanted), made, fold)


def test_what_a_member_brings_is_the_score_with_it_less_that_without():
    choice, found, made, fold = judged([1.5, 1.5, 0.0])
    assert [row["without"] for row in found.dropped] == ["a", "b", "c"]
    right = [np.mean(sum(m) .argmax(1) == made.labels) for m in (
        made.members, made.members[1:], made.members[::2], made.members[:2])]  # fmt: skip
    for row, without in zip(found.dropped, right[1:], strict=True):
        assert row["score"] == pytest.approx(without)
        assert row["gain"] == pytest.approx(right[0] - without)
        assert row["gain_low"] < row["gain"] < row["gain_high"]
    assert found.dropped[0]["gain_low"] > 0 > found.dropped[2]["gain"]
    assert judged([1.5, 1.5, 0.0], drop_one=False)[1].dropped == []


def test_an_ensemble_that_is_better_says_so_and_stays():
    choice, found, *_ = judged([1.2, 1.6, 1.2], fallback="best")
    assert found.fails is None and found.gain.low > 0 and found.best == "b"
    assert "better than its best member, b: gain +" in found.says
    assert choice.shares == [1 / 3] * 3


def test_an_ensemble_that_is_not_better_says_so_and_offers_its_best_member():
    kept, found, *_ = judged([0.0, 2.0, 0.0])
    assert found.fails and kept.shares == [1 / 3] * 3  # said, and not changed
    assert "not better than its best member, b: gain -" in found.says
    assert "--set ensemble.fallback=best --overwrite" in found.says
    alone, found, made, fold = judged([0.0, 2.0, 0.0], fallback="best")
    assert (alone.method, alone.shares) == ("best member", [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(alone.cross_fitted(made.members, fold), made.members[1])
    assert found.gain.value < 0


def test_the_best_member_of_a_fold_is_chosen_on_the_others():
    made, fold = pool([1.0, 1.0], n=400)
    near = [np.log(np.full((400, 5), 0.2)) + 3 * np.eye(5)[made.labels] for _ in "ab"]
    for i, wrong in ((0, fold == 0), (1, fold == 1)):  # a fails in fold 0, b in 1 and a bit more
        near[i][wrong] = np.log(0.2)
    near[1][np.flatnonzero(fold == 2)[:5]] = np.log(0.2)
    made = Pool([log_probabilities(z) for z in near], made.labels, "accuracy")
    choice = choose(
        made.members, made.labels, fold, "accuracy", config().ensemble.combiner, Judge()
    )
    shares = review(list("ab"), made, fold, choice, Judge(), None).instead.per_fold
    assert shares[0] == {"shares": [1.0, 0.0]}  # where it is worse: nobody looked
    assert shares[1] == {"shares": [0.0, 1.0]}


def test_for_a_metric_where_lower_is_better_the_best_is_the_lowest():
    made, fold = pool([0.0, 2.0])
    made = Pool(made.members, made.labels, "nll")
    choice = choose(made.members, made.labels, fold, "nll", config().ensemble.combiner, Judge())
    found = review(list("ab"), made, fold, choice, Judge(), None)
    assert found.best == "b" and 0 < found.score < np.log(5)


# ---- the whole stage ---------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return digits_runs(good=0.0, bad=8.0)


def crt(**keys):
    return config(ensemble={"members": ["crt"], "combiner": "mean"} | keys)


def test_the_manifest_and_the_report_show_what_each_brings(world):
    two = [crt(), crt()]
    result = ensemble(two, ["good", "bad"])
    facts = read_json(RUNS / "submissions" / "good+bad.manifest.json")
    assert facts["best_member"]["member"] == "good/crt" and not facts["best_member"]["better"]
    assert [row["without"] for row in facts["drop_one"]] == ["bad/crt", "good/crt"]
    assert facts["diversity"][0]["a"] == "bad/crt" and facts["method"] == "mean"
    page = write_report(gather(DATASET, ["good", "bad"], two)).read_text()
    part = page.split('<section id="ensemble">')[1]
    assert "not better than its best member, good/crt" in part and "error correlation" in part
    with pytest.raises(UserError, match="fallback: None there, 'best' now"):
        ensemble([crt(fallback="best")] * 2, ["good", "bad"])
    best = ensemble([crt(fallback="best")] * 2, ["good", "bad"], overwrite=True)
    alone = ensemble([crt()], ["good"])
    assert best.submission.read_bytes() == alone.submission.read_bytes()
    assert best.choice.method == "best member" and alone.review is None
    assert best.score["accuracy"] > result.score["accuracy"]


def test_members_may_be_other_heads_and_other_views(world):
    heads = config(ensemble={"members": ["ncm"], "combiner": "mean"}, predict={"tta": {"crops": 5}})
    result = ensemble([crt(), heads], ["good", "bad"])
    assert result.oof["member"].tolist() == ["bad/ncm", "good/crt", "ensemble"]


def test_members_of_some_folds_are_refused_or_compared_where_all_are_out_of_fold(world):
    whole = ensemble([crt(), crt()], ["good", "bad"])
    shutil.rmtree(RUNS / "bad" / "stage2" / "crt" / "fold1")
    with pytest.raises(UserError, match="03_train_stage2.py --folds 1`.*missing_folds=common"):
        ensemble([crt(), crt()], ["good", "bad"])
    common = crt(missing_folds="common")
    found = ensemble([common, common], ["good", "bad"], overwrite=True)
    facts = read_json(RUNS / "submissions" / "good+bad.manifest.json")
    assert facts["folds"] == [0, 2] and "good/stage2/crt/fold1/oof.npz" not in facts["inputs"]
    there = (world.fold == 0) | (world.fold == 2)
    logits = np.concatenate([world.logits("crt", k, world.features[world.fold == k])
                             for k in (0, 2)])  # fmt: skip
    labels = np.concatenate([world.labels[world.fold == k] for k in (0, 2)])
    row = found.oof.set_index("member").loc["good/crt"]
    assert len(labels) == there.sum() and row["accuracy"] == np.mean(logits.argmax(1) == labels)
    assert found.submission.read_bytes() == whole.submission.read_bytes()  # the mean, as before
    posthoc(config(), "good")
    shutil.copy(RUNS / "good/predict/ncm.npz", RUNS / "good/predict/posthoc.npz")
    keys = {"members": ["posthoc"], "missing_folds": "common", "combiner": "mean"}
    mixed = ensemble([config(ensemble=keys), common], ["good", "bad"], overwrite=True)
    assert mixed.oof["member"].tolist() == ["bad/crt", "good/posthoc", "ensemble"]
    for k in (0, 2):
        shutil.rmtree(RUNS / "good" / "stage2" / "crt" / f"fold{k}")
    with pytest.raises(UserError, match=re.escape("bad/crt: [0, 2]")):
        ensemble([common, common], ["good", "bad"], overwrite=True)


def test_other_classes_are_refused(world):
    """Another order of the classes means other labels in folds.csv, another K other logits."""
    path = RUNS / "folds" / "classes.csv"
    order = np.random.default_rng(0).permutation(len(CLASS_IDS))
    again = type(world)(**vars(world) | {"labels": order[world.labels]})
    write_dataset(again)
    write_experiment(again, "good")
    write_predictions(again, "good")
    with pytest.raises(UserError, match="bad/stage2/crt/fold0/oof.npz: made from a different fold"):
        ensemble([crt(), crt()], ["good", "bad"])

    # the tables with one class more, as if 01 had run again
    path.write_text(path.read_text() + "10,new,new,0,few\n")
    seal(path.parent)
    with pytest.raises(UserError, match=r"logits have shape .*expected .*11. .*has 11 classes"):
        ensemble([crt()], ["good"])
