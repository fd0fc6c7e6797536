"""Stage 4: it keeps what helps on images it was not chosen on, and refuses what does not fit."""

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest

import src.artifacts.oof as oof_module
from src import metrics
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, read_table, write_arrays, write_json, write_table
from src.artifacts.oof import load_head_folds, optimism
from src.artifacts.predictions import Predictions, load_predictions
from src.artifacts.trained import write_config
from src.artifacts.work import MANIFEST
from src.config.judge import Judge
from src.config.posthoc import AnyStep
from src.config.schema import Config
from src.errors import UserError
from src.fusion import STEPS, apply_recipe
from src.fusion.step import State, Step
from src.fusion.store import load_recipe
from src.fusion.temperature import Temperature
from src.logits import head_logits
from src.metrics import Gain, balanced_accuracy, nll
from src.posthoc.calibrate import posthoc
from src.posthoc.crossfit import Trial, cross_fitted, no_steps, try_step
from src.posthoc.inputs import Start, load_start
from src.posthoc.words import choice_in_words, ends, head_in_words, refusals_in_words
from tests.fabricate import (
    DATASET,
    FOLDS,
    config,
    count,
    digits_world,
    seal,
    step,
    write_dataset,
    write_experiment,
    write_fold,
)

HOME = Path("runs") / DATASET / "exp"


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = digits_world()
    write_dataset(found)
    write_experiment(found, "exp")
    return found


def edit(path: Path, **arrays) -> None:
    """Replace arrays of an .npz, given as functions of what is there."""
    with np.load(path) as archive:
        found = {name: archive[name] for name in archive.files}
    write_arrays(path, **found | {name: change(found[name]) for name, change in arrays.items()})
    seal(path.parent)


# ---- the whole stage ---------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["logit_adjustment", "ncm_fusion"])
def test_planted_good_steps_are_kept_and_the_tail_rises(world, step):
    steps = ["tau_norm", step, "temperature"]
    few = {"standard_errors": 1}  # the digits' tail is a few images long
    table = posthoc(config(posthoc={"heads": ["stage1"], "steps": steps}, judge=few), "exp")
    rows = table.set_index(["start", "step"])
    assert rows.loc[("stage1", step), "kept"] == "yes"
    assert rows.loc[("stage1", "temperature"), "kept"] == "yes"
    before, after = rows.loc[("stage1", "")], rows.loc[("stage1", "final")]
    assert after["balanced_accuracy"] > before["balanced_accuracy"] + 0.05
    assert after["few"] > before["few"] and after["ece"] < before["ece"]
    gain = rows.loc[("stage1", step), "gain"]
    assert gain == pytest.approx(after["balanced_accuracy"] - before["balanced_accuracy"])


def test_the_head_with_the_best_cross_fitted_metric_wins(world):
    table = posthoc(config(), "exp")
    found = read_json(HOME / "posthoc" / "posthoc.json")
    finals = table[(table["kept"] == "yes") | (table["step"] == "")]
    assert found["scores"]["after"] == pytest.approx(finals["balanced_accuracy"].max())
    assert table.iloc[-1]["start"] == found["head"]
    assert set(table["start"]) == {"stage1", "crt", "ncm"}


def test_oof_is_cross_fitted_and_the_recipe_is_fitted_on_all(world):
    lenient = {"standard_errors": 0}  # something is kept, whatever a CPU makes of the last digits
    posthoc(config(posthoc={"heads": ["stage1"]}, judge=lenient), "exp")
    found = read_json(HOME / "posthoc" / "posthoc.json")
    oof = load_predictions(HOME / "posthoc" / "oof.npz", world.num_classes)
    assert len(set(json.dumps(steps) for steps in found["per_fold"].values())) > 1
    dataset = load_dataset(DATASET)
    for fold in range(FOLDS):
        rows = np.flatnonzero(world.fold == fold)
        recipe = {"head": found["head"], "steps": found["per_fold"][str(fold)]}
        f = world.features[rows]
        start, counts = world.logits("stage1", fold, f), dataset.counts(dataset.images)
        expected = apply_recipe(recipe, f, world.heads[fold], {"stage1": start}, counts)
        mine = oof.logits[np.searchsorted(oof.image_id, world.ids[rows])]
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-4)
    images = load_dataset(DATASET).images
    assert sorted(oof.image_id) == sorted(images[images["fold"] >= 0]["image_id"])
    assert found["scores"]["after"] == pytest.approx(balanced_accuracy(oof.logits, oof.label))


def test_the_classes_are_balanced_by_what_the_network_was_trained_with(world, capsys):
    """Not by what the YAML says by now, nor by what it said when it was another network's."""
    trained = config(train={"criterion": "balanced_softmax"})
    write_config(HOME, trained, {})
    steps = {"posthoc": {"heads": ["stage1"], "steps": ["logit_adjustment"]}}
    for now in ({}, {"train": {"criterion": "balanced_softmax"}}):
        table = posthoc(config(**steps, **now), "exp", overwrite=True).set_index(["start", "step"])
        reason = table.loc[("stage1", "logit_adjustment"), "reason"]
        assert reason == "train.criterion=balanced_softmax has balanced the classes already"
        said = "config.yaml: trained with train.criterion.name = 'balanced_softmax'"
        assert (said in capsys.readouterr().out) == (not now)
    write_config(HOME, config(), {})
    table = posthoc(config(**steps, **now), "exp", overwrite=True).set_index(["start", "step"])
    assert "balanced the classes" not in table.loc[("stage1", "logit_adjustment"), "reason"]


def test_every_candidate_is_written_down(world):
    steps = [{"name": "tau_norm", "grid": 5}, {"name": "ncm_fusion", "grid": 5}]
    posthoc(config(posthoc={"heads": ["stage1"], "steps": steps}), "exp")
    log = read_table(HOME / "posthoc" / "search.csv", ["score"])
    counts = log.groupby(["step", "cross_fitted"]).size()
    assert counts["tau_norm", "no"] == 1 + 5  # without it, and five values of tau
    assert counts["ncm_fusion", "no"] == 1 + 4 and counts["ncm_fusion", "yes"] == 1
    table = read_table(HOME / "posthoc" / "table.csv", ["balanced_accuracy"])
    plain = log[(log["step"] == "tau_norm") & (log["params"] == "")]["score"].item()
    assert plain == pytest.approx(table["balanced_accuracy"][0])


def test_the_same_command_twice_is_skipped_and_another_config_stops(world, capsys):
    first = posthoc(config(), "exp")
    files = {p.name: p.read_bytes() for p in (HOME / "posthoc").iterdir()}
    capsys.readouterr()
    pd.testing.assert_frame_equal(posthoc(config(), "exp"), first)
    assert "finished already" in capsys.readouterr().out
    assert files == {p.name: p.read_bytes() for p in (HOME / "posthoc").iterdir()}
    other = config(judge={"min_gain": 0.5})
    with pytest.raises(UserError, match="judge.min_gain: 0.0 there, 0.5 now"):
        posthoc(other, "exp")
    posthoc(other, "exp", overwrite=True)


def test_permuting_rows_changes_no_byte(world):
    posthoc(config(), "exp")
    names = ("posthoc.json", "search.csv", "table.csv", "oof.npz")
    first = [(HOME / "posthoc" / name).read_bytes() for name in names]
    for seed, path in enumerate(sorted(HOME.glob("stage*/**/oof.npz"))):
        with np.load(path) as archive:
            found = {name: archive[name] for name in archive.files}
        order = np.random.default_rng(seed).permutation(len(found["image_id"]))
        write_arrays(path, **{name: array[order] for name, array in found.items()})
        seal(path.parent)
    posthoc(config(), "exp", overwrite=True)
    assert first == [(HOME / "posthoc" / name).read_bytes() for name in names]


def test_weights_that_were_picked_on_oof_are_marked(world):
    path = HOME / "stage1" / "fold1" / MANIFEST
    write_json(path, read_json(path) | {"select": "best"})
    posthoc(config(), "exp")
    found = read_json(HOME / "posthoc" / "posthoc.json")["optimistic"]
    assert found.startswith("Out-of-fold scores are optimistic") and "select: best" in found
    assert read_json(HOME / "posthoc" / MANIFEST)["optimistic"] is True


def searched(stage: str, values: dict, fold: int | None = None) -> None:
    """As 02 and 03 leave it: fold 2 has values of the search, which looked away from `fold`."""
    path = HOME / stage / "fold2" / MANIFEST
    write_json(path, read_json(path) | {"searched": values})
    if fold is not None:
        place = HOME / "search" if stage == "stage1" else HOME / stage / "search"
        write_json(place / MANIFEST, {"settings": {"search": {"fold": fold}}})


def test_settings_that_were_searched_on_oof_images_are_marked(world):
    searched("stage1", {})
    searched("stage2/crt", {}, fold=0)  # a search whose winner 03 did not use
    posthoc(config(), "exp")
    assert read_json(HOME / "posthoc" / "posthoc.json")["optimistic"] is None
    assert read_json(HOME / "posthoc" / MANIFEST)["optimistic"] is False

    searched("stage1", {"train.weight_decay": 0.01}, fold=1)
    posthoc(config(), "exp", overwrite=True)
    assert read_json(HOME / "posthoc" / "posthoc.json")["optimistic"] == (
        "Out-of-fold scores are slightly optimistic: settings were searched on fold 1's training "
        "images, which the other folds hold out (train.weight_decay)."
    )
    assert read_json(HOME / "posthoc" / MANIFEST)["optimistic"] is True

    searched("stage2/crt", {"crt.lr": 0.1, "crt.epochs": 3}, fold=0)
    posthoc(config(), "exp", overwrite=True)
    found = read_json(HOME / "posthoc" / "posthoc.json")["optimistic"]
    assert "train.weight_decay" in found and found.endswith(
        " Out-of-fold scores of crt are slightly optimistic: settings were searched on the "
        "held-out images of all folds but fold 0 (crt.epochs, crt.lr)."
    )


def test_a_search_that_was_removed_is_still_marked(world):
    searched("stage1", {"train.lr": 0.01})
    assert optimism([HOME / "stage1", HOME / "posthoc", HOME / "nothing"]) == [
        "Out-of-fold scores are slightly optimistic: settings were searched on search.fold's "
        "training images, which the other folds hold out (train.lr)."
    ]


OWN = "python:mine.py:cost"


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "top5", "log_loss", "macro_auc", OWN])
def test_every_metric_can_be_tuned_for(world, metric):
    code = "def cost(labels, predicted): return (labels != predicted).mean()"
    Path("mine.py").write_text(f"{code}\ncost.greater_is_better = False\n")
    heads = {"heads": ["stage1", "crt"], "steps": ["logit_adjustment", "temperature"]}
    table = posthoc(config(metric=metric, posthoc=heads), "exp")
    assert read_json(HOME / "posthoc" / "posthoc.json")["metric"] == metric
    ends = table[(table["kept"] == "yes") | (table["step"] == "")]
    ends = ends[ends["start"] != "ncm"][metric]
    assert table.iloc[-1][metric] == pytest.approx(
        ends.min() if metric in ("log_loss", OWN) else ends.max()
    )
    oof = load_predictions(HOME / "posthoc" / "oof.npz", world.num_classes)
    outcome = metrics.OUTCOMES[metric](oof.logits, oof.label)
    expected = metrics.SCORES[metric](outcome, oof.label, world.num_classes)
    assert table.iloc[-1][metric] == pytest.approx(expected)
    assert ("metric" in read_json(HOME / "posthoc" / MANIFEST)["inputs"]) == (metric == OWN)


def test_calibration_is_judged_by_a_metric_of_probabilities(world):
    """As the large outcomes of AUC are searched one candidate at a time."""
    heads = {"heads": ["stage1"], "steps": ["logit_adjustment", "temperature"]}
    posthoc(config(metric="macro_auc", posthoc=heads), "exp")
    log = read_table(HOME / "posthoc" / "search.csv", ("score",))
    assert set(log["scored_by"]) == {"macro_auc"}
    start = load_all(world)
    tried = log[(log["step"] == "logit_adjustment") & (log["cross_fitted"] == "no")]
    assert len(tried) == 21
    for params, score in zip(tried["params"], tried["score"], strict=True):
        tau = json.loads(params)["tau"] if params else 0.0
        logits = start["logits"] - tau * np.log(np.bincount(world.labels, minlength=10))
        outcome = metrics.OUTCOMES["macro_auc"](logits, start["labels"])
        assert score == pytest.approx(metrics.SCORES["macro_auc"](outcome, start["labels"], 10))


def load_all(world) -> dict[str, np.ndarray]:
    folds = load_head_folds(HOME, "stage1", load_dataset(DATASET)).values()
    return {
        "logits": np.concatenate([part.logits for part in folds]),
        "labels": np.concatenate([part.label for part in folds]),
    }


def test_without_stage_2_there_is_still_a_temperature(world):
    table = posthoc(config(stage2=[], judge={"standard_errors": 1}), "exp").set_index("step")
    assert "needs another head: one of kind ncm" in table.loc["ncm_fusion", "reason"]
    assert table.loc["temperature", "kept"] == "yes"


# ---- what is refused ---------------------------------------------------------------------------


def test_missing_folds_say_which_command_makes_them(world):
    shutil.rmtree(HOME / "stage1" / "fold1")
    (HOME / "stage1" / "fold2" / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"folds 1 2 of 0 1 2.*02_train_stage1.py --folds 1 2`"):
        posthoc(config(), "exp")


def test_a_missing_head_says_which_stage_makes_it(world):
    shutil.rmtree(HOME / "stage2" / "ncm")
    with pytest.raises(UserError, match=r"stage2/ncm: folds 0 1 2 .*03_train_stage2.py"):
        posthoc(config(), "exp")


def test_predictions_from_other_folds_are_refused(world):
    write_dataset(replace(world, fold=np.where(world.fold >= 0, 2 - world.fold, -1)))
    with pytest.raises(UserError, match="made from a different folds.csv"):
        posthoc(config(), "exp")


def test_a_changed_folds_csv_is_noticed_after_04_too(world):
    posthoc(config(), "exp")
    path = Path("runs") / DATASET / "folds" / "folds.csv"
    write_table(path, read_table(path).iloc[::-1])
    seal(path.parent)
    with pytest.raises(UserError, match="made from a different folds.csv"):
        posthoc(config(), "exp")


def test_a_missing_image_and_a_wrong_label_are_refused(world):
    path = HOME / "stage1" / "fold0" / "oof.npz"
    whole = path.read_bytes()
    edit(path, label=lambda y: np.roll(y, 3))
    with pytest.raises(UserError, match="have another label than in folds.csv"):
        posthoc(config(), "exp")
    path.write_bytes(whole)
    names = ("image_id", "logits", "label", "fold", "features")
    edit(path, **{name: lambda rows: rows[1:] for name in names})
    with pytest.raises(UserError, match="1 missing"):
        posthoc(config(), "exp")


def test_a_head_of_other_weights_is_refused(world):
    path = HOME / "stage1" / "fold2" / MANIFEST
    write_json(path, read_json(path) | {"outputs": {"weights.safetensors": "trained again"}})
    with pytest.raises(UserError, match=r"fold2: trained on features of other weights.*03"):
        posthoc(config(), "exp")


# ---- the search: is its gain honest? -----------------------------------------------------------


def random_start(seed: int, informative: float = 0.0, n=120, k=6, folds=4) -> Start:
    """A start head and an NCM that know nothing, or an NCM that knows something."""
    rng = np.random.default_rng(seed)
    states, labels = {}, {}
    for fold in range(folds):
        y = rng.integers(k, size=n // folds)
        means = np.eye(k, dtype=np.float32)
        f = rng.normal(size=(len(y), k)).astype(np.float32) + informative * means[y]
        z = rng.normal(size=(len(y), k)).astype(np.float32)
        heads = {"ncm": ("cosine", {"weight": means, "scale": np.float32(1)})}
        states[fold], labels[fold] = State(z, f, "stage1", heads), y
    return Start("stage1", states, labels)


def test_with_labels_that_mean_nothing_the_cross_fitted_gain_is_not_positive():
    in_sample, honest = [], []
    for seed in range(60):
        start = random_start(seed)
        trial = try_step(step("ncm_fusion"), start, no_steps(start), config())
        scores = [score for _, score in trial.searched]
        in_sample.append(max(scores) - scores[0])
        honest.append(trial.gain.value)
    error = np.std(honest) / np.sqrt(len(honest))
    assert np.mean(in_sample) > 0.02
    assert np.mean(honest) < 2 * error  # zero within two standard errors, or below
    assert np.mean(honest) < 0.3 * np.mean(in_sample)


def test_a_planted_useful_step_is_kept_and_its_gain_is_about_right():
    start = random_start(0, informative=2.0, n=600)
    trial = try_step(step("ncm_fusion"), start, no_steps(start), config())
    assert trial.kept and trial.gain.value > 0.4
    assert trial.choices[None]["w"] < 0.6


def test_a_useless_step_is_dropped():
    start = random_start(0, informative=3.0, n=600)  # now the start head is the one that knows
    states = {
        fold: State(s.features, np.roll(s.features, 1, axis=0), "stage1", s.heads)
        for fold, s in start.states.items()
    }
    start = Start("stage1", states, start.labels)
    trial = try_step(step("ncm_fusion"), start, no_steps(start), config())
    assert not trial.kept and trial.gain.value <= 0


def test_min_gain_is_the_bar():
    start = random_start(0, informative=2.0, n=600)
    settings = config(judge={"min_gain": 0.9})
    trial = try_step(step("ncm_fusion"), start, no_steps(start), settings)
    assert not trial.kept and "is not above 0.9" in trial.reason


@pytest.mark.parametrize("name", ["ncm_fusion", "temperature"])
def test_a_gain_within_its_standard_error_is_not_kept(name):
    """The old rule, any gain above 0, kept these; the interval says how little is known."""
    found = []
    for seed in range(40):
        start = random_start(seed, informative=0.3 if name == "ncm_fusion" else 0.0, n=80)
        states = {k: replace(s, logits=s.logits * 0.1) for k, s in start.states.items()}
        start = Start("stage1", states if name == "temperature" else start.states, start.labels)
        trials = [
            try_step(step(name), start, no_steps(start), config(judge={"standard_errors": times}))
            for times in (0, 1)
        ]
        any_gain, rule = trials
        assert any_gain.gain == rule.gain
        assert any_gain.kept == (rule.gain.value > 0 and rule.choices[None] is not None)
        assert rule.kept == (any_gain.kept and rule.gain.value > rule.gain.noise)
        assert rule.gain.low < rule.gain.value < rule.gain.high
        found += [rule] if any_gain.kept and not rule.kept else []
    assert found and all("is within noise: not above 1 x" in trial.reason for trial in found)


def test_every_gain_has_its_interval(world):
    table = posthoc(config(), "exp")
    tried = read_json(HOME / "posthoc" / "posthoc.json")["tried"]
    judged = [t for t in tried if t["gain"] is not None]
    assert len(judged) >= 5
    for trial in judged:
        row = table[(table["start"] == trial["head"]) & (table["step"] == trial["step"])].iloc[0]
        for name in ("gain", "gain_low", "gain_high"):
            assert row[name] == pytest.approx(trial[name])
        noise = (row["gain_high"] - row["gain"]) / 1.96
        assert row["gain"] - row["gain_low"] == pytest.approx(1.96 * noise)
        assert trial["kept"] == (row["gain"] > Judge().standard_errors * noise)
    log = read_table(HOME / "posthoc" / "search.csv")
    honest = log[log["cross_fitted"] == "yes"]
    assert (honest["gain_low"] != "").all() and (log["gain_low"] != "").sum() == len(honest)


def test_what_is_chosen_for_a_fold_does_not_depend_on_its_labels():
    start = random_start(3, informative=0.7)
    shuffled = {**start.labels, 2: np.roll(start.labels[2], 1)}
    first, second = start, Start("stage1", start.states, shuffled)
    for name in ("ncm_fusion", "temperature"):
        one, two = (try_step(step(name), s, no_steps(s), config()) for s in (first, second))
        assert one.choices[2] == two.choices[2]
        assert one.searched != two.searched


class Shift(Step):
    """A class-wise shift fitted to the labels, as an array: what a later method with many
    parameters does."""

    def fit(self, states, labels):
        z, y = np.concatenate([s.logits for s in states]), np.concatenate(labels)
        return {"shift": -np.log(np.bincount(y, minlength=z.shape[1]) + 1).astype(np.float32)}

    @staticmethod
    def apply(state, params):
        return state.logits + params["shift"]


class ShiftKeys(AnyStep):
    name: Literal["shift"] = "shift"


def test_a_method_with_a_fit_of_its_own_is_cross_fitted_too(monkeypatch):
    monkeypatch.setitem(STEPS, "shift", Shift)
    found, start = Shift(ShiftKeys(), config()), random_start(5, n=80)
    trial = try_step(found, start, no_steps(start), config())
    assert set(trial.choices) == {0, 1, 2, 3, None}
    expected = found.fit(
        [start.states[k] for k in (1, 2, 3)], [start.labels[k] for k in (1, 2, 3)]
    )["shift"]
    np.testing.assert_array_equal(trial.choices[0]["shift"], expected)
    logits = dict(cross_fitted(start, trial.recipes))[0]
    np.testing.assert_array_equal(logits, start.states[0].logits + expected)
    again = try_step(step("temperature"), start, trial.recipes, config())  # on top of arrays
    assert set(again.recipes) == {0, 1, 2, 3, None} and len(again.recipes[0]) == 2


def test_parameters_that_are_arrays_are_stored_shown_and_found_again(world, monkeypatch):
    monkeypatch.setitem(STEPS, "shift", Shift)
    settings = config(posthoc={"heads": ["stage1"]})
    steps = (ShiftKeys(), *settings.posthoc.steps[-1:])
    settings = settings.model_copy(
        update={"posthoc": settings.posthoc.model_copy(update={"steps": steps}),
                "judge": settings.judge.model_copy(update={"standard_errors": 0.0})}
    )  # fmt: skip
    table = posthoc(settings, "exp")
    found = load_recipe(HOME / "posthoc")
    assert [s["step"] for s in found["steps"]][0] == "shift"
    assert found["steps"][0]["params"]["shift"].shape == (10,)
    assert '"array [10]"' in table.set_index("step").loc["shift", "params"]
    assert '"array [10]"' in (HOME / "posthoc" / "search.csv").read_text().replace('""', '"')
    outputs = read_json(HOME / "posthoc" / MANIFEST)["outputs"]
    assert {"posthoc.json", "posthoc.npz", "oof.npz"} <= outputs.keys()
    oof = load_predictions(HOME / "posthoc" / "oof.npz", 10)
    rows = np.flatnonzero(world.fold == 1)
    f, counts = world.features[rows], np.bincount(world.labels)
    recipe = {"head": "stage1", "steps": found["per_fold"]["1"]}
    given = {"stage1": world.logits("stage1", 1, f)}
    mine = oof.logits[np.searchsorted(oof.image_id, world.ids[rows])]
    expected = apply_recipe(recipe, f, world.heads[1], given, counts)
    np.testing.assert_allclose(mine, expected, rtol=1e-5)


EVERY = tuple(name for name in STEPS if name != "metadata_prior")  # there are no columns
SWEPT = ("tau_norm", "logit_adjustment", "ncm_fusion", "temperature")  # they know no image by heart


@pytest.mark.parametrize(
    ("large", "steps", "arrays"), [(2**28, EVERY, 3), (2**16, SWEPT, 1.2)], ids=["memory", "disk"]
)
def test_the_search_never_holds_the_logits_of_many_candidates(
    tmp_path, monkeypatch, large, steps, arrays
):
    """K = 8142 and N = 25 000 fit in 4 GiB: beyond what it reads, the search may hold a few arrays
    of the size of the logits, and not one for each of the 21 points of a grid. Where they are large
    it holds chunks alone."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    monkeypatch.setattr("src.artifacts.mapped.LARGE", large)
    monkeypatch.setattr("src.metrics.outcomes.CHUNK", 2**16)
    n, k, d = 2000, 500, 8
    rng = np.random.default_rng(0)
    f = rng.normal(size=(n, d)).astype(np.float32)
    weight = rng.normal(size=(k, d)).astype(np.float32)
    bias = rng.normal(0, 5, k).astype(np.float32)  # which tau_norm drops, so there is a chain
    heads = {
        "stage1": ("linear", {"weight": weight, "bias": bias}),
        "ncm": ("cosine", {"weight": weight, "scale": np.float32(1)}),
    }
    y = (f @ weight.T).argmax(1)
    rows = [slice(0, n // 2), slice(n // 2, n)]
    states = {i: State(f[r] @ weight.T + bias, f[r], "stage1", heads) for i, r in enumerate(rows)}
    start = Start("stage1", states, {i: y[r] for i, r in enumerate(rows)})
    tracemalloc.start()
    recipes = no_steps(start)
    for name in steps:
        recipes = try_step(step(name), start, recipes, config()).recipes or recipes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(recipes[None]) >= 2
    assert peak < arrays * n * k * 4


def wide(heads: int, n=1500, k=300, d=8, folds=3) -> Config:
    """An experiment of which logits are all that is large; the first head of stage 2 is right."""
    rng = np.random.default_rng(0)
    names = [f"crt{i}" for i in range(heads)]
    f = rng.normal(size=(n, d)).astype(np.float32)
    kinds = {
        name: ("linear", {"weight": w, "bias": w[:, 0]})
        for name in ("stage1", *names)
        for w in [rng.normal(size=(k, d)).astype(np.float32)]
    }
    labels = head_logits(f, kinds["crt0"][1], "linear").argmax(1)
    ids, fold = np.array([f"{i:05d}" for i in range(n)]), np.arange(n) % folds
    images = pd.DataFrame({"image_id": ids, "path": ids, "class_id": labels, "label": labels})
    numbers = {"fold": fold, "group_id": ids, "width": 8, "height": 8}
    classes = pd.DataFrame({"label": range(k), "class_id": range(k), "class_name": range(k)})
    directory = HOME.parent / "folds"
    write_table(directory / "folds.csv", images.assign(**numbers))
    write_table(directory / "classes.csv", classes.assign(count=n // k, bin="medium"))
    write_table(directory / "test.csv", images.head(1))
    write_json(directory / MANIFEST, {})
    for name, head in kinds.items():
        for one in range(folds):
            rows = fold == one
            z = head_logits(f[rows], head[1], head[0])
            oof = Predictions(ids[rows], z, labels[rows], fold[rows], f[rows])
            stage = HOME / "stage1" if name == "stage1" else HOME / "stage2" / name
            write_fold(stage / f"fold{one}", oof, head)
    stage2 = [{"head": "crt", "name": name} for name in names]
    return config(stage2=stage2, posthoc={"steps": ["temperature"]})


def peak_memory(directory: Path, heads: int, monkeypatch) -> int:
    directory.mkdir()
    monkeypatch.chdir(directory)
    settings = wide(heads)
    tracemalloc.start()
    posthoc(settings, "exp")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_start_holds_the_heads_that_steps_read_and_no_others(world):
    """A head that changed the backbone's batch norm is no function of stage 1's features: it comes
    with its own logits."""

    class Reader(Step):
        def reads(self):
            return ["crt"]

    dataset = load_dataset(DATASET)
    for bn, given in (("train", {"stage1", "crt"}), ("frozen", {"stage1"})):
        settings = config(stage2=[{"head": "crt", "bn": bn}, {"head": "ncm"}])
        stage1 = load_head_folds(HOME, "stage1", dataset)
        for steps, heads in (([], {"stage1"}), ([Reader(None, settings)], {"stage1", "crt"})):
            state = load_start("stage1", steps, stage1, HOME, dataset, settings).states[1]
            assert state.heads.keys() == heads and state.given.keys() == given & heads
    assert load_start("ncm", [], stage1, HOME, dataset, settings).states[1].heads.keys() == {"ncm"}


def test_memory_does_not_grow_with_the_number_of_heads(tmp_path, monkeypatch):
    monkeypatch.setattr("src.metrics.outcomes.CHUNK", 2**15)
    logits = 1500 * 300 * 4  # bytes
    one, four = (peak_memory(tmp_path / str(n), n, monkeypatch) for n in (1, 4))
    assert four - one < 0.5 * logits
    assert four < 5 * logits  # stage 1's, one head's, what a step makes of them, the result


def test_temperature_is_fitted_once_per_fold_and_once_for_all(world, monkeypatch):
    fits = count(monkeypatch, Temperature, "fit")
    posthoc(config(), "exp")
    assert len(fits) == 3 * (FOLDS + 1)  # three start heads


def test_every_head_is_read_once_and_scored_once_per_row(world, monkeypatch):
    reads = count(monkeypatch, oof_module, "load_predictions")
    scored = count(monkeypatch, metrics.Outcomes, "summary")
    calibrated = count(monkeypatch, metrics.Outcomes, "calibration")
    table = posthoc(config(), "exp")
    again = FOLDS * (table["start"].iloc[-1] != "stage1")  # the winner's, whose logits were let go
    assert len(reads) == 3 * FOLDS + again
    judged = table["accuracy"].notna().sum() - 1  # the last row is that of what was kept
    assert len(scored) == len(calibrated) == judged


def test_temperature_is_judged_by_the_likelihood():
    rng = np.random.default_rng(0)
    k, states, labels = 5, {}, {}
    for fold in range(3):
        z = rng.normal(size=(300, k))
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        labels[fold] = (p.cumsum(1) > rng.random((300, 1))).argmax(1)
        states[fold] = State((5 * z).astype(np.float32), None, "stage1", {})
    start = Start("stage1", states, labels)
    trial = try_step(step("temperature"), start, no_steps(start), config())
    assert trial.kept and trial.scored_by == "nll"
    before, after = (
        nll(np.concatenate(list(z.values())), np.concatenate(list(labels.values())))
        for z in map(
            dict, (cross_fitted(start, no_steps(start)), cross_fitted(start, trial.recipes))
        )
    )
    assert trial.gain.value == pytest.approx(before - after, abs=1e-4)


def test_a_bin_called_head_does_not_hide_the_start_head(world):
    path = Path("runs") / DATASET / "folds" / "classes.csv"
    classes = read_table(path)
    classes["bin"] = ["head"] * 5 + ["tail"] * 5
    write_table(path, classes)
    seal(path.parent)
    table = posthoc(config(), "exp")
    assert set(table["start"]) == {"stage1", "crt", "ncm"}
    assert table["head"].max() <= 1 and table["tail"].max() <= 1


# ---- what is said ------------------------------------------------------------------------------


def test_gains_name_their_unit_refusals_their_heads_and_the_choice_what_was_fused():
    fused = Trial("ncm_fusion", True, "", "balanced_accuracy", gain=Gain(0.082, 0.01))
    cooler = Trial("temperature", True, "", "nll", gain=Gain(0.943, 0.1))
    noise = Trial("tau_norm", False, "within noise", "balanced_accuracy", gain=Gain(0.01, 0.02))
    said = head_in_words("crt", 0.421, 0.504, [noise, fused, cooler], "balanced_accuracy")
    assert said.startswith("crt: balanced accuracy 0.421 → 0.504; kept ncm_fusion, +0.082 [")
    assert "] balanced accuracy; temperature, +0.943 [" in said and "] NLL (nats)" in said
    assert said.endswith("no gain beyond chance by tau_norm")
    same = head_in_words("ncm", 0.4, 0.4, [cooler], "balanced_accuracy")
    assert same.startswith("ncm: balanced accuracy 0.400; kept temperature")
    why = "needs a linear head, not one of kind cosine"
    refused = [Trial("tau_norm", False, why)]
    lines = refusals_in_words({"stage1": refused, "crt": [noise], "ncm": refused})
    assert lines == [f"tau_norm: not for stage1, ncm: {why}"]
    fusion = {"head": "ncm", "scaler": "minmax", "operator": "convex", "w": 0.35}
    recipe = {"head": "crt", "steps": [{"step": "ncm_fusion", "params": fusion},
              {"step": "temperature", "params": {"T": 2.8818}}], "metric": "accuracy",
              "scores": {"stage1": 0.4842, "before": 0.4, "after": 0.5038}}  # fmt: skip
    assert choice_in_words(recipe) == (
        "final: crt with ncm fused in (weight 0.65), temperature (T = 2.88): accuracy 0.504, "
        "stage1 alone 0.484, cross-fitted"
    )


def test_the_table_on_the_screen_has_a_row_per_head_as_it_ends(world):
    table = posthoc(config(), "exp")
    shown = ends(table)
    heads = table["start"].unique().tolist()
    assert [name.split(" + ")[0] for name in shown["head"]] == heads
    for row in shown.to_dict("records"):
        kept = table[(table["start"] == row["start"]) & (table["kept"] == "yes")]["step"]
        assert row["head"] == " + ".join([row["start"], *kept])
    final = table.iloc[-1]
    chosen = shown[shown["start"] == final["start"]].iloc[0]
    assert chosen["balanced_accuracy"] == final["balanced_accuracy"]
