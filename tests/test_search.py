"""The search: an honest inner split, workers that may be killed, and a winner that is used."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml

import src.training.fit as training
import src.training.trials as searching
from src.artifacts.dataset import Dataset, load_dataset
from src.artifacts.files import read_json, read_table, write_table
from src.config.read import load_config, parse_config, with_values
from src.config.search import Search
from src.errors import UserError
from src.metrics import METRICS
from src.rebalance.stage2 import stage2
from src.search.study import Worker, first_values, locked, open_study, table, winner, work
from src.training.inner_split import hold_out, inner_split
from src.training.stage1 import stage1
from tests.fabricate import seal
from tests.training_kit import DATASET, tiny_config, tiny_dataset

KEY = "train.weight_decay"
NOW = {KEY: 5e-4, "train.batch_size": 8, "train.optimizer": "sgd"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ungrouped_dataset() -> Dataset:
    """The tiny data set, each image a group of its own."""
    path = tiny_dataset().directory / "folds.csv"
    images = read_table(path)
    write_table(path, images.assign(group_id=range(len(images))))
    seal(path.parent)
    return load_dataset(DATASET)


# ---- the inner split ---------------------------------------------------------------------------


def test_the_inner_split_never_holds_an_outer_held_out_image():
    data = ungrouped_dataset()
    inner = inner_split(data, Search(fold=1, holdout=0.3))
    assert set(inner.images["image_id"]) == set(data.training(1)["image_id"])
    train, out = inner.training(1), inner.held_out(1)
    assert not set(out["image_id"]) & set(data.held_out(1)["image_id"])
    assert len(out) and len(train) + len(out) == len(data.training(1))
    assert (data.counts(train) > 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_no_group_spans_it_and_every_class_keeps_its_share(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(12, 400, p=np.geomspace(1, 0.02, 12) / np.geomspace(1, 0.02, 12).sum())
    groups = rng.integers(0, 250, 400).astype(str)  # some of several classes
    out = hold_out(labels, groups, 0.2, seed)
    for group in np.unique(groups):
        assert len(set(out[groups == group])) == 1
    counts = np.bincount(labels, minlength=12)
    held = np.bincount(labels[out], minlength=12)
    assert (held <= np.floor(0.2 * counts + 0.5)).all()
    assert (held[counts > 0] < counts[counts > 0]).all()


def test_without_groups_the_shares_are_exact():
    labels = np.repeat(np.arange(5), [100, 50, 10, 3, 1])
    out = hold_out(labels, np.arange(len(labels)), 0.2, 0)
    assert np.bincount(labels[out], minlength=5).tolist() == [20, 10, 2, 1, 0]


def test_the_split_depends_on_its_seed_and_not_on_the_names_of_groups():
    labels = np.repeat(np.arange(4), 25)
    groups = np.arange(100)
    first = hold_out(labels, groups, 0.2, 0)
    assert (first == hold_out(labels, np.array([f"x{g:05d}" for g in groups]), 0.2, 0)).all()
    assert (first != hold_out(labels, groups, 0.2, 1)).any()


# ---- the study ---------------------------------------------------------------------------------


def toy(trial, values: dict) -> float:
    """Best at 1e-2."""
    return -abs(np.log10(values[KEY]) + 2)


def run_toy(directory: Path, spec: Search, run=toy, now=NOW):
    with Worker(directory) as worker:
        with locked(directory):
            study = open_study(directory, spec, {"settings": {}})
        work(study, spec, now, worker, run, wait=0.05)
        return study


def test_the_configs_own_values_come_first_and_the_best_is_found():
    spec = Search(trials=14)
    study = run_toy(Path("a"), spec)
    rows = table(study, spec)
    assert len(rows) == 14 and rows[KEY][0] == NOW[KEY]
    assert rows[KEY].between(1e-5, 1e-1).all() and rows[KEY].nunique() == 14
    assert abs(np.log10(winner(study).params[KEY]) + 2) < 0.3
    assert read_table("a/trials.csv", ("score",))["score"].max() == winner(study).value


def test_killed_between_and_within_trials_it_ends_with_the_same_trials():
    spec = Search(trials=9)
    whole = table(run_toy(Path("whole"), spec), spec)
    calls = 0

    def killed(trial, values):
        nonlocal calls
        calls += 1
        if calls in (3, 7):
            raise KeyboardInterrupt
        return toy(trial, values)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_toy(Path("killed"), spec, killed)
    study = run_toy(Path("killed"), spec, killed)
    rows = table(study, spec)
    assert len(rows) == 9 and calls == 11
    assert sorted(rows[KEY]) == pytest.approx(sorted(whole[KEY]))
    origins = [t.user_attrs["origin"] for t in study.trials if "origin" in t.user_attrs]
    assert len(origins) == 2  # what was lost is tried again under its first number


def test_more_trials_are_added_to_a_finished_study_and_none_without_need():
    run_toy(Path("a"), Search(trials=5))
    study = run_toy(Path("a"), Search(trials=5), run=None)  # would fail if it were called
    assert len(table(study, Search())) == 5
    assert len(table(run_toy(Path("a"), Search(trials=7)), Search())) == 7


def test_whole_numbers_choices_and_values_out_of_range():
    keys = {
        KEY: {"low": 1e-3, "high": 1e-1, "log": True},  # the config's 5e-4 is not in it
        "train.batch_size": {"low": 4, "high": 16},
        "train.lr": {"low": 1, "high": 2},
        "train.optimizer": {"choices": ["sgd", "adamw"]},
    }
    spec = Search(keys=keys, trials=12)
    now = NOW | {"train.lr": 0.1}
    rows = table(run_toy(Path("a"), spec, now=now), spec)
    assert (rows[KEY] >= 1e-3).all() and set(rows["train.optimizer"]) == {"sgd", "adamw"}
    assert rows["train.batch_size"][0] == 8 and rows["train.optimizer"][0] == "sgd"
    assert all(isinstance(v, int | np.integer) for v in rows["train.batch_size"])
    assert rows["train.lr"].map(lambda v: v % 1 > 0).any()  # whole ends, but the key is none
    assert len(first_values(spec, now)) == 4


WORKER = """
import sys, time
from pathlib import Path
from src.config.search import Search
from src.search.study import Worker, locked, open_study, work
def slow(trial, values):
    print("trial", flush=True)
    time.sleep(float(sys.argv[1]))
    return values["train.weight_decay"]
spec, now, directory = Search(trials=int(sys.argv[2])), {"train.weight_decay": 5e-4}, Path("shared")
with Worker(directory) as worker:
    with locked(directory):
        study = open_study(directory, spec, {"settings": {}})
    work(study, spec, now, worker, slow, wait=0.05)
"""


def start_worker(seconds: float, trials: int) -> subprocess.Popen:
    here = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(seconds), str(trials)],
        env=os.environ | {"PYTHONPATH": str(here)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_workers_share_a_study_and_one_takes_over_from_the_other():
    first, second = start_worker(0.5, 8), start_worker(0.5, 8)
    assert first.wait(60) == 0 and second.wait(60) == 0
    rows = read_table("shared/trials.csv", ("score",))
    assert len(rows) == 8 and rows["worker"].nunique() == 2

    doomed = start_worker(600, 10)
    assert doomed.stdout.readline() == "trial\n"
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    study = run_toy(Path("shared"), Search(trials=10))
    assert len(table(study, Search())) == 10
    assert [t.state.name for t in study.trials].count("FAIL") == 1


def test_a_worker_that_is_alive_keeps_its_trial():
    spec = Search(trials=1)
    other = start_worker(2, 1)
    assert other.stdout.readline() == "trial\n"
    began = time.time()
    study = run_toy(Path("shared"), spec, run=None)  # waits, and never runs anything
    assert time.time() - began > 1 and len(study.trials) >= 1
    assert other.wait(60) == 0 and winner(study).number == 0


# ---- 02 --search -------------------------------------------------------------------------------


def searched_config(**keys):
    tree = tiny_config(train={"epochs": 4}).model_dump(mode="json")
    spec = {"trials": 3, "epochs": 2, "holdout": 0.3, "pruner": "none"} | keys
    return parse_config(tree | {"search": spec})


def test_a_search_ends_with_a_winner_that_later_runs_use(capsys):
    ungrouped_dataset()
    above = {KEY: {"low": 1e-3, "high": 1e-1, "log": True}}  # the config has 1e-4
    config = searched_config(keys=above)
    rows = searching.search(config, "exp", overwrite=False)
    home = Path("runs") / DATASET / "exp"
    best = read_json(home / "search" / "best.json")
    scores = pd.to_numeric(read_table(home / "search" / "trials.csv")["score"])
    assert len(rows) == 3 and best["score"] == scores.max()
    for name in ("manifest.json", "history.png", "trials/000/metrics.csv"):
        assert (home / "search" / name).is_file()
    assert not list((home / "search").rglob("last.pt"))
    searching.search(config, "exp", overwrite=False)
    assert "finished already, skipped" in capsys.readouterr().out

    stage1(config, "exp", ["0"], False)
    note = f"{KEY} = {best['values'][KEY]!r} (config: 0.0001)"
    assert note in capsys.readouterr().out
    stage2(config, "exp", False)
    assert note in capsys.readouterr().out
    text = (home / "config.yaml").read_text()
    assert f"# from search/best.json: {KEY} =" in text
    assert yaml.safe_load(text)["train"]["weight_decay"] == best["values"][KEY]
    manifest = read_json(home / "stage1" / "fold0" / "manifest.json")
    assert manifest["searched"] == best["values"]
    assert manifest["settings"]["train"]["weight_decay"] == best["values"][KEY]
    assert manifest["settings"]["train"]["epochs"] == 4

    with pytest.raises(UserError, match=r"train.weight_decay: .* 0.0001 now"):
        stage1(searched_config(keys=above, use=False), "exp", ["0"], False)
    with pytest.raises(UserError, match="search.epochs: 2 there, 3 now"):
        searching.search(searched_config(keys=above, epochs=3), "exp", overwrite=False)
    other = {"train.lr": {"low": 0.01, "high": 0.1}}
    with pytest.raises(UserError, match=r"search.keys now has \['train.lr'\]"):
        stage1(searched_config(keys=other), "exp", ["1"], False)


def test_trials_see_the_inner_split_alone(monkeypatch):
    data = ungrouped_dataset()
    seen, fit = [], searching.fit

    def watching(job, *rest):
        seen.append(set(job.data.images["image_id"]))
        assert job.config.train.epochs == 2 and job.config.train.warmup_epochs == 0.5
        return fit(job, *rest)

    monkeypatch.setattr(searching, "fit", watching)
    searching.search(searched_config(trials=2), "exp", overwrite=False)
    assert len(seen) == 2
    assert all(not ids & set(data.held_out(0)["image_id"]) for ids in seen)


def test_a_trial_that_was_killed_goes_on_after_its_last_epoch(monkeypatch, capsys):
    ungrouped_dataset()
    config = searched_config(trials=1)
    searching.search(config, "whole", overwrite=False)
    save = training.save_checkpoint

    def save_and_die(where: Path, state: dict) -> None:
        save(where, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_checkpoint", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            searching.search(config, "killed", overwrite=False)
    searching.search(config, "killed", overwrite=False)
    assert "trials/000: continuing after epoch 1" in capsys.readouterr().out
    scores = [
        read_json(f"runs/{DATASET}/{name}/search/best.json")["score"]
        for name in ("whole", "killed")
    ]
    assert scores[0] == scores[1]


def test_a_training_that_diverges_is_a_pruned_trial_that_says_why():
    ungrouped_dataset()
    keys = {"train.lr": {"low": 0.01, "high": 1e30, "log": True}}
    rows = searching.search(searched_config(keys=keys, trials=4), "exp", overwrite=False)
    bad = rows[rows["state"] == "pruned"]
    assert len(bad) and bad["note"].str.contains("loss became|not finite").all()
    assert read_json(f"runs/{DATASET}/exp/search/best.json")["values"]["train.lr"] < 1e10


@pytest.fixture
def scored_by_lr(monkeypatch):
    """Trainings whose every validation scores as much as their learning rate is."""
    ungrouped_dataset()
    monkeypatch.setattr(
        training,
        "scores",
        lambda job, found: dict.fromkeys([*METRICS, "log_loss"], job.config.train.lr),
    )


PRUNED = {"pruner": "median", "trials": 10, "keys": {"train.lr": {"low": 0.01, "high": 0.1}}}


def test_a_bad_trial_stops_early_however_seldom_the_config_validates(scored_by_lr):
    config = with_values(searched_config(**PRUNED, epochs=6), {"train.eval_every": 50}, "test")
    rows = searching.search(config, "exp", overwrite=False)
    pruned, complete = (rows[rows["state"] == state] for state in ("pruned", "complete"))
    assert len(pruned) and len(pruned) + len(complete) == 10
    assert (complete["epochs"] == 6).all()
    assert (pruned["epochs"] == 2).all()  # of six: a third, and then the first look
    lr, best = rows["train.lr"].astype(float), complete["train.lr"].astype(float)
    assert lr[pruned.index].max() < best.median()
    home = Path(f"runs/{DATASET}/exp/search/trials")
    for trial in rows["trial"]:
        logged = read_table(home / f"{trial:03d}/metrics.csv", ("balanced_accuracy",))
        assert len(logged) == rows["epochs"][trial] and logged["balanced_accuracy"].notna().all()
    assert not list(home.rglob("last.pt"))


def test_of_a_loss_the_lowest_wins(scored_by_lr):
    asked = searched_config(**PRUNED | {"pruner": "none", "trials": 4}, epochs=1)
    config = with_values(asked, {"metric": "log_loss"}, "test")
    rows = searching.search(config, "exp", overwrite=False)
    best = read_json(f"runs/{DATASET}/exp/search/best.json")
    assert best["score"] == rows["score"].min() == best["values"]["train.lr"]
    assert rows["score"].nunique() > 2


@pytest.mark.parametrize(("metric", "kept"), [("log_loss", 2), ("accuracy", 4)])
def test_the_best_epoch_is_the_lowest_of_a_loss(metric, kept, monkeypatch):
    ungrouped_dataset()
    values = iter([0.5, 0.3, 0.4, 0.6, 0.7])
    monkeypatch.setattr(training, "scores", lambda job, found: {metric: next(values)})
    config = searched_config(epochs=4)
    config = with_values(config, {"metric": metric, "train.select": "best"}, "test")
    found = []
    monkeypatch.setattr(training, "load_trained", lambda *args: found.append(args))
    save = training.save_checkpoint
    bests = []
    monkeypatch.setattr(
        training, "save_checkpoint", lambda d, s: (bests.append(s["best"]["epoch"]), save(d, s))
    )
    stage1(with_values(config, {"train.epochs": 4}, "test"), "exp", ["0"], False)
    assert bests[-1] == kept and len(found) == 1


def test_a_trial_that_was_trained_to_its_end_is_never_called_pruned(scored_by_lr, monkeypatch):
    monkeypatch.setattr(optuna.pruners.MedianPruner, "prune", lambda *args: True)
    rows = searching.search(searched_config(**PRUNED, epochs=1), "exp", overwrite=False)
    assert (rows["state"] == "complete").all() and rows["score"].nunique() == 10


def test_a_trial_that_fails_leaves_no_checkpoint(monkeypatch):
    ungrouped_dataset()
    save = training.save_checkpoint

    def save_and_fail(where: Path, state: dict) -> None:
        save(where, state)
        assert (where / "last.pt").is_file()
        raise UserError("it diverged")

    monkeypatch.setattr(training, "save_checkpoint", save_and_fail)
    with pytest.raises(UserError, match="the last said: it diverged"):
        searching.search(searched_config(trials=1), "exp", overwrite=False)
    assert not list(Path("runs").rglob("last.pt"))


def test_without_a_pruner_the_config_says_how_often_trials_are_validated():
    config = with_values(searched_config(epochs=2), {"train.eval_every": 50}, "test")
    assert searching.proxy(config).train.eval_every == 50
    config = with_values(config, {"search.pruner": "median"}, "test")
    assert searching.proxy(config).train.eval_every == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{train.weight_deca: {low: 1.0e-5, high: 0.1}}", "did you mean `train.weight_decay`|did"),
        ("{weight_decay: {low: 1.0e-5, high: 0.1}}", "did you mean train.weight_decay"),
        ("{train.lr: {low: 0.1, high: 0.1}}", r"low \(0.1\) must be below high \(0.1\)"),
        ("{train.lr: {low: 0, high: 0.1, log: true}}", "low must be above 0"),
        ("{train.lr: {low: 0.1}}", "give low and high, or choices"),
        ("{train.optimizer: {choices: [sgd, adamww]}}", "did you mean 'adamw'"),
        ("{model.dropout: {low: 0.1, high: 1.5}}", "less than 1"),
        ("{stage2.0.lr: {low: 0.1, high: 1.5}}", "only keys of model and train"),
    ],
)
def test_a_wrong_key_or_range_is_an_error_in_words(keys, message):
    Path("a.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match=message):
        load_config("a.yaml", [f"search.keys={keys}"])


def test_what_cannot_be_searched_is_refused():
    ungrouped_dataset()
    with pytest.raises(UserError, match="none of the folds"):
        searching.search(searched_config(fold=7), "exp", overwrite=False)
    keys = {"train.epochs": {"low": 1, "high": 4}}
    with pytest.raises(UserError, match="train.epochs is set by search.epochs"):
        searching.search(searched_config(keys=keys), "exp", overwrite=False)
    with pytest.raises(UserError, match="no class has enough images"):
        inner_split(load_dataset(DATASET), Search(holdout=0.01))
