"""Stage 6: weights that are honest, and a submission that the competition accepts."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax

from src.artifacts.dataset import load_dataset
from src.artifacts.files import (
    read_arrays,
    read_json,
    read_table,
    write_arrays,
    write_json,
    write_table,
)
from src.artifacts.predictions import load_predictions
from src.artifacts.work import MANIFEST
from src.config.ensemble import Ensemble
from src.config.judge import Judge
from src.ensemble.choice import Choice, choose
from src.ensemble.combiner import Combiner, Pool
from src.ensemble.combiners import COMBINERS
from src.ensemble.ensemble import ensemble
from src.ensemble.gathered import submission_name
from src.ensemble.members import Member, log_probabilities
from src.ensemble.record import oof_table
from src.errors import UserError
from src.fusion.decision import Decision
from src.fusion.pool import average
from src.posthoc.calibrate import posthoc
from src.report.context import gather
from src.report.page import write_report
from tests.fabricate import (
    CLASS_IDS,
    DATASET,
    NAMES,
    ODD_IDS,
    config,
    digits_runs,
    seal,
    write_dataset,
    write_experiment,
)

RUNS = Path("runs") / DATASET
HEADS = config(ensemble={"members": NAMES})
ONE = config(ensemble={"members": ["crt"]})


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return digits_runs(good=0.0, bad=8.0)


def permute(path: Path, seed: int) -> None:
    with np.load(path) as archive:
        found = {name: archive[name] for name in archive.files}
    order = np.random.default_rng(seed).permutation(len(found["image_id"]))
    write_arrays(path, **{name: array[order] for name, array in found.items()})


# ---- weights -----------------------------------------------------------------------------------


def members(seed: int, strengths, n=400, k=5):
    """Log-probabilities of members that know the labels more or less, and labels and folds."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    logits = [s * np.eye(k)[labels] + rng.normal(size=(n, k)) for s in strengths]
    return [log_probabilities(z) for z in logits], labels, np.arange(n) % 4


def test_log_probabilities_and_their_average_by_hand():
    z = np.log(np.array([[0.5, 0.25, 0.25]])) + 3
    np.testing.assert_allclose(np.exp(log_probabilities(z)), [[0.5, 0.25, 0.25]], rtol=1e-6)
    a, b = np.array([[0.0, 2.0]]), np.array([[4.0, 0.0]])
    np.testing.assert_allclose(average([a, b], [0.25, 0.75]), [[3.0, 0.5]])


def chosen(arrays, labels, fold, metric="accuracy", rounds=10, **rule) -> Choice:
    """What greedy selection, or the mean where that is not really better, makes of members."""
    section = Ensemble(combiner={"name": "greedy", "rounds": rounds}).combiner
    return choose(arrays, labels, fold, metric, section, Judge(**rule))


def test_one_member_has_all_the_weight():
    arrays, labels, fold = members(0, [1.0])
    found = chosen(arrays, labels, fold)
    assert (found.method, found.shares) == ("single", [1.0])
    copies = found.cross_fitted(arrays, fold), found.combine(arrays)
    assert all(copy is arrays[0] for copy in copies)  # there may be gigabytes of it


def test_mean_is_the_mean_when_asked_for():
    section = Ensemble(combiner="mean").combiner
    found = choose(*members(0, [2.0, 0.0]), "accuracy", section, Judge())
    assert (found.method, found.shares) == ("mean", [0.5, 0.5])


@pytest.mark.parametrize(
    "metric", ["accuracy", "balanced_accuracy", "macro_f1", "top5", "log_loss", "macro_auc", "map3"]
)
def test_greedy_picks_the_planted_good_member(metric):
    k = 12 if metric == "top5" else 5
    found = chosen(*members(0, [0.0, 3.0, 0.0, 0.0], k=k), metric)
    assert found.method == "greedy" and found.gain.low > 0
    assert found.shares[1] == max(found.shares) > 0.6


def test_greedy_falls_back_to_the_mean_in_noise():
    kept = 0
    for seed in range(12):
        found = chosen(*members(seed, [1.0] * 4, n=200), "balanced_accuracy")
        kept += found.method == "greedy"
        if found.method == "mean":
            assert found.shares == [0.25] * 4
            assert "within noise" in found.reason or "is not above 0" in found.reason
    assert kept <= 1


def test_the_section_judge_is_the_bar():
    arrays = members(0, [0.0, 1.2, 1.0], n=300)
    gain = chosen(*arrays).gain
    ratio = gain.value / gain.noise
    assert ratio > 1 and chosen(*arrays, standard_errors=ratio - 0.01).method == "greedy"
    assert chosen(*arrays, standard_errors=ratio + 0.01).method == "mean"
    assert chosen(*arrays, min_gain=gain.value + 0.01).method == "mean"


def test_weights_of_a_fold_do_not_depend_on_its_labels():
    arrays, labels, fold = members(0, [0.0, 2.0, 1.9])
    shuffled = labels.copy()
    shuffled[fold == 1] = np.roll(labels[fold == 1], 1)
    one, two = (chosen(arrays, y, fold) for y in (labels, shuffled))
    assert one.method == two.method == "greedy"
    assert one.per_fold[1] == two.per_fold[1]


def test_ties_go_to_the_first_by_name():
    arrays, labels, fold = members(0, [0.0, 3.0])
    found = chosen([arrays[0], arrays[1], arrays[1]], labels, fold, rounds=1, standard_errors=0)
    assert found.shares == [0.0, 1.0, 0.0]


def test_the_ensembles_oof_row_uses_what_was_chosen_on_the_other_folds(world):
    dataset = load_dataset(DATASET)
    arrays, _, _ = members(0, [0.0, 0.0], n=225, k=10)
    both = [Member(name, z, z, {}) for name, z in zip("ab", arrays, strict=True)]
    images = dataset.images[dataset.images["fold"] >= 0]
    labels, fold = images["label"].to_numpy(), images["fold"].to_numpy()
    shares = [{"shares": s} for s in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5])]
    choice = Choice("greedy", "greedy", "", shares[0], dict(enumerate(shares)))
    plain = Decision("accuracy", "", "")
    oof = choice.cross_fitted(arrays, fold)
    row = oof_table(both, choice, oof, labels, fold, dataset, plain).iloc[-1]
    parts = {0: arrays[0], 1: arrays[1], 2: (arrays[0] + arrays[1]) / 2}
    right = np.concatenate([parts[k][fold == k].argmax(1) == labels[fold == k] for k in range(3)])
    assert row["member"] == "ensemble" and row["accuracy"] == pytest.approx(right.mean())


class PerClass(Combiner):
    """A weight for every member and class, an array: what a later method may fit."""

    def fit(self, pool: Pool, rows: np.ndarray):
        right = [(m.argmax(1) == pool.labels) & rows for m in pool.members]
        found = [np.bincount(pool.labels[r], minlength=pool.num_classes) + 1.0 for r in right]
        return {"weight": (np.stack(found) ** 2 / np.square(found).sum(0)).astype(np.float32)}

    @staticmethod
    def combine(members, params):
        return sum(w * m for w, m in zip(params["weight"], members, strict=True))


def test_a_combiner_of_arrays_is_judged_stored_and_reported(world, monkeypatch):
    monkeypatch.setitem(COMBINERS, "greedy", PerClass)
    result = ensemble([HEADS, HEADS], ["good", "bad"])
    assert result.choice.method == "greedy" and result.choice.gain.low > 0
    assert result.oof["weight"].isna().all()
    assert result.oof.iloc[-1]["gain_low"] == pytest.approx(result.choice.gain.low)
    facts = read_json(RUNS / "submissions" / "good+bad.manifest.json")
    assert set(facts["weights"].values()) == {None}
    assert facts["params"] == {"weight": {"npz": "weight", "shape": [6, 10]}}
    assert facts["gain_low"] < facts["gain"] < facts["gain_high"]
    name = "good+bad.params.npz"
    assert name in facts["outputs"]
    arrays = read_arrays(RUNS / "submissions" / name)
    np.testing.assert_array_equal(arrays["weight"], result.choice.final["weight"])
    pool = Pool([np.log(np.eye(3)[:2] + 0.1)] * 2, np.array([0, 0]), "accuracy")
    assert PerClass(None).fit(pool, np.array([True, False]))["weight"].shape == (2, 3)
    report = gather(DATASET, ["good", "bad"], [HEADS, HEADS])
    part = write_report(report).read_text().split('<section id="ensemble">')[1]
    assert "good/crt" in part and "over the mean +" in part and "standard errors" in part


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"weights": "mean"}, "`weights` is no key any more: it is ensemble.combiner"),
        ({"rounds": 5}, "ensemble.combiner: {name: greedy, rounds: 30}"),
        ({"combiner": "gredy"}, "did you mean 'greedy'?"),
        ({"combiner": {"name": "mean", "rounds": 3}}, "unknown key `ensemble.combiner.rounds`"),
    ],
)
def test_a_mistake_in_the_combiner_is_named(tree, says):
    with pytest.raises(UserError, match=re.escape(says)):
        config(ensemble=tree)


# ---- the whole stage ---------------------------------------------------------------------------


def test_a_submission_of_one_head_is_that_heads_argmax(world):
    result = ensemble([ONE], ["good"])
    assert result.submission == RUNS / "submissions" / "good.csv"
    table = read_table(result.submission)
    logits = np.mean([world.logits("crt", k, world.test_features) for k in range(3)], axis=0)
    assert list(table) == ["Id", "Category"]
    assert table["Id"].tolist() == world.test_ids.tolist()
    assert table["Category"].tolist() == [CLASS_IDS[i] for i in logits.argmax(1)]
    assert set(ODD_IDS) <= set(table["Id"]) and {"00012", "1e5", "NA"} <= set(table["Category"])
    saved = load_predictions(RUNS / "submissions" / "good.npz", 10).take(world.test_ids)
    np.testing.assert_allclose(saved.logits, log_softmax(logits, axis=1), rtol=1e-4, atol=1e-5)


def test_the_good_experiment_gets_the_weight(world):
    result = ensemble([HEADS, HEADS], ["good", "bad"])
    facts = read_json(RUNS / "submissions" / "good+bad.manifest.json")
    assert result.choice.method == facts["method"] == "greedy"
    assert sum(w for name, w in facts["weights"].items() if name.startswith("good/")) > 0.9
    assert list(facts["weights"]) == sorted(facts["weights"])
    assert facts["metrics"]["oof"]["balanced_accuracy"] == pytest.approx(
        result.oof.iloc[-1]["balanced_accuracy"]
    )
    assert facts["inputs"].keys() >= {
        "folds.csv",
        "bad/predict/crt.npz",
        "good/stage1/fold0/oof.npz",
    }


def test_posthoc_is_a_member(world):
    posthoc(config(), "good")
    shutil.copy(RUNS / "good" / "predict" / "ncm.npz", RUNS / "good" / "predict" / "posthoc.npz")
    result = ensemble([config()], ["good"])
    assert result.oof["member"].tolist() == ["good/posthoc", "ensemble"]
    path = RUNS / "good" / "predict" / MANIFEST
    facts = read_json(path)
    write_json(path, facts | {"inputs": facts["inputs"] | {"posthoc.json": "another"}})
    with pytest.raises(UserError, match="made with another .*posthoc.json.*05_predict.py"):
        ensemble([config()], ["good"])


def test_the_solution_is_scored_on_the_ids_it_has(world, tmp_path):
    whole = ensemble([ONE], ["good"])
    table = read_table(whole.submission)
    right = [CLASS_IDS[y] for y in world.test_labels] == table["Category"]
    assert whole.score["accuracy"] == pytest.approx(right.mean())
    assert (whole.scored, whole.images) == (len(table), len(table))
    truth = pd.DataFrame(
        {"Id": world.test_ids, "Category": [CLASS_IDS[y] for y in world.test_labels]}
    )
    write_table(tmp_path / "part.csv", truth.iloc[::-1].iloc[:50].assign(Usage="Public"))
    part = ensemble([ONE], ["good"], solution=tmp_path / "part.csv")
    assert part.scored == 50
    assert part.score["accuracy"] == pytest.approx(right[-50:].mean())
    assert part.submission.read_bytes() == whole.submission.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Id": "stranger"}, "1 ids are no test images: 'stranger'"),
        ({"Category": "4781"}, "class ids '4781' are not in classes.csv"),
    ],
)
def test_a_wrong_solution_is_an_error(world, tmp_path, change, message):
    truth = {"Id": world.test_ids[:3], "Category": CLASS_IDS[:3]}
    table = pd.DataFrame(truth)
    table.loc[1, list(change)] = list(change.values())
    path = write_table(tmp_path / "wrong.csv", table)
    with pytest.raises(UserError, match=message):
        ensemble([ONE], ["good"], solution=path)
    write_table(path, table.rename(columns={"Id": "id"}))
    with pytest.raises(UserError, match="columns 'Id' are missing"):
        ensemble([ONE], ["good"], solution=path)
    with pytest.raises(UserError, match="no such solution"):
        ensemble([ONE], ["good"], solution="nowhere.csv")


def test_permuting_any_artifact_changes_no_byte(world, tmp_path):
    posthoc(config(), "good")
    shutil.copy(RUNS / "good" / "predict" / "ncm.npz", RUNS / "good" / "predict" / "posthoc.npz")
    both = config(ensemble={"members": ["posthoc", "crt", "ncm"]})
    submission = ensemble([both, HEADS], ["good", "bad"]).submission
    files = (submission, submission.with_suffix(".npz"))
    first = [path.read_bytes() for path in files]
    arrays = [p for p in RUNS.glob("*/**/*.npz") if "submissions" not in p.parts]
    assert len(arrays) > 20
    for seed, path in enumerate(sorted(arrays)):
        permute(path, seed)
        seal(path.parent)
    for name in ("classes.csv", "test.csv"):
        path = RUNS / "folds" / name
        write_table(path, read_table(path).sample(frac=1, random_state=0))
        seal(path.parent)
    shutil.rmtree(RUNS / "submissions")
    ensemble([both, HEADS], ["good", "bad"], out=tmp_path / "out.csv")
    assert [path.read_bytes() for path in files] == first
    assert (tmp_path / "out.csv").read_bytes() == first[0]


def test_without_a_sample_the_order_is_that_of_test_csv(world):
    write_dataset(world, sample=False, solution=False)
    result = ensemble([ONE], ["good"])
    assert read_table(result.submission)["Id"].tolist() == world.test_ids.tolist()
    assert result.score is None and result.scored == 0


def test_what_is_still_to_run_before_06_is_named_at_once(world):
    settings, home = config(ensemble={"members": ["posthoc"]}), RUNS / "good"
    posthoc(settings, "good")
    for lost, said in (
        ("predict", "`python 05_predict.py` with the same --config first."),
        ("posthoc", "`python 04_posthoc_calibrate.py` with the same --config first, then 05."),
        ("stage2", "`python 03_train_stage2.py` with the same --config first, then 04, 05."),
        ("stage1", "`python 02_train_stage1.py` with the same --config first, then 03, 04, 05."),
    ):
        shutil.rmtree(home / lost)
        with pytest.raises(UserError, match="is missing. Run") as refused:
            ensemble([settings], ["good"])
        assert str(refused.value).endswith(f"Run {said}")


def test_the_scripts_run_where_torch_cannot_be_imported(world, tmp_path):
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    text = "{data: {root: data/raw/digits}, bins: {many: 30, few: 12}}"
    (tmp_path / "good.yaml").write_text(text)

    def run(script, *more):
        root = Path(__file__).parents[1]
        command = [sys.executable, root / script, "--config", "good.yaml", *more]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    found = run("04_posthoc_calibrate.py")
    assert found.returncode == 0, found.stderr
    assert "ncm + temperature" in found.stdout and "optimistic" not in found.stdout
    number = r"[+-][0-9]+[.][0-9]{3}"
    assert re.search(rf" {number} \[{number}, {number}\] ", found.stdout)
    missing = run("06_ensemble.py")
    assert missing.returncode == 2 and "Run `python 05_predict.py`" in missing.stderr
    shutil.copy(RUNS / "good" / "predict" / "ncm.npz", RUNS / "good" / "predict" / "posthoc.npz")
    found = run("06_ensemble.py", "--out", "submission.csv")
    assert found.returncode == 0, found.stderr
    assert "solution: on 200 of 200 test images" in found.stdout
    assert len(read_table("submission.csv")) == 200 and "optimistic" not in found.stdout
    path = RUNS / "good" / "stage1" / "fold0" / MANIFEST
    write_json(path, read_json(path) | {"select": "best"})
    for script in ("04_posthoc_calibrate.py", "06_ensemble.py"):
        said = run(script, "--overwrite").stdout
        assert "Out-of-fold scores are optimistic" in said and "train.select: best" in said


# ---- what is refused ---------------------------------------------------------------------------


def test_predictions_from_other_folds_are_refused(world):
    other = replace(world, fold=np.where(world.fold >= 0, 2 - world.fold, -1))
    write_dataset(other)
    with pytest.raises(UserError, match="stage2/crt/fold0/oof.npz: made from a different folds"):
        ensemble([ONE], ["good"])
    write_experiment(other, "good")  # OOF of the new folds, test logits still of the old ones
    with pytest.raises(UserError, match="predict/crt.npz: made from a different folds.csv"):
        ensemble([ONE], ["good"])


def test_missing_stages_say_what_to_run(world):
    with pytest.raises(UserError, match="04_posthoc_calibrate.py"):
        ensemble([config()], ["good"])
    (RUNS / "good" / "predict" / "crt.npz").unlink()
    with pytest.raises(UserError, match="crt.npz is missing.*04_posthoc_calibrate.py.*then 05"):
        ensemble([ONE], ["good"])
    shutil.rmtree(RUNS / "bad" / "stage2" / "crt" / "fold1")
    with pytest.raises(UserError, match="folds 1 of 0 1 2 are missing.*03_train_stage2.py"):
        ensemble([ONE], ["bad"])


def test_a_test_image_without_a_prediction_is_named(world):
    path = RUNS / "good" / "predict" / "crt.npz"
    with np.load(path) as archive:
        found = {name: archive[name][1:] for name in archive.files}
        lost = archive["image_id"][0]
    write_arrays(path, **found)
    seal(path.parent)
    with pytest.raises(UserError, match=f"1 missing .'{lost}'"):
        ensemble([ONE], ["good"])


def test_experiments_must_go_together(world):
    with pytest.raises(UserError, match="one metric is needed.*good: balanced_accuracy, bad: top5"):
        ensemble([ONE, config(metric="top5")], ["good", "bad"])
    other = config(ensemble={"members": ["crt"], "combiner": "mean"})
    with pytest.raises(UserError, match="one ensemble.combiner is needed.*'greedy'.*'mean'"):
        ensemble([ONE, other], ["good", "bad"])
    other = config(ensemble={"members": ["crt"]}, judge={"standard_errors": 2})
    with pytest.raises(UserError, match="one judge is needed"):
        ensemble([ONE, other], ["good", "bad"])
    with pytest.raises(UserError, match="one dataset is needed"):
        ensemble([ONE, config(data={"root": "data/raw/other"})], ["good", "bad"])
    with pytest.raises(UserError, match="names of their own"):
        ensemble([ONE, ONE], ["good", "good"])


def test_a_submission_of_other_settings_is_not_replaced_unasked(world):
    ensemble([ONE], ["good"])
    with pytest.raises(UserError, match="--overwrite"):
        ensemble([HEADS], ["good"])
    ensemble([HEADS], ["good"], overwrite=True)


def test_many_experiments_still_fit_a_file_name():
    assert submission_name(["a", "b"]) == "a+b"
    many = [f"experiment_with_a_long_name_{i}" for i in range(20)]
    assert len(submission_name(many)) < 130
    assert submission_name(many) != submission_name(many[::-1])
