"""The search for settings of heads: what it finds, what it never reads, and that 03 uses it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import src.rebalance.stage2 as stage2_module
import src.rebalance.trials as searching
from src.artifacts.files import read_json, read_table, sha256, write_table
from src.artifacts.heads import save_head
from src.artifacts.predictions import Predictions, load_predictions, save_features
from src.artifacts.work import MANIFEST, digest
from src.config.head_keys import head_ranges
from src.config.read import load_config, parse_config
from src.config.schema import Config
from src.errors import UserError
from src.metrics import balanced_accuracy
from src.rebalance.stage2 import stage2
from src.rebalance.trials import search_heads
from tests.fabricate import seal

COUNTS, WIDTH, FOLDS = [60, 30, 12, 6], 8, 3
HOME = Path("runs/made/exp")
SEARCH = HOME / "stage2/crt/search"
KEY = "crt.lr"


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch):
    """What 01, 02 and the first half of 03 leave, without images: three folds, each with features
    of its own kind, as of a network of its own that was fitted to its training images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    labels = np.repeat(np.arange(len(COUNTS)), COUNTS)
    fold = np.concatenate([np.arange(count) % FOLDS for count in COUNTS])
    ids = np.array([f"{i:04d}" for i in range(len(labels))])
    folder = Path("runs/made/folds")
    names = [str(c) for c in range(len(COUNTS))]
    bins = ["many", "many", "few", "few"]
    classes = {"label": range(len(COUNTS)), "class_id": names, "class_name": names}
    classes |= {"count": COUNTS, "bin": bins}
    images = {"image_id": ids, "path": ids, "label": labels, "fold": fold, "width": 1, "height": 1}
    write_table(folder / "folds.csv", pd.DataFrame(images))
    write_table(folder / "classes.csv", pd.DataFrame(classes))
    write_table(folder / "test.csv", pd.DataFrame({"image_id": [], "path": []}))
    seal(folder, status="finished")
    means = 2 * np.eye(len(COUNTS), WIDTH)
    for k in range(FOLDS):
        rng = np.random.default_rng(k)
        turn = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
        noise = np.where(fold == k, 0.9, 0.3)[:, None] * rng.normal(size=(len(labels), WIDTH))
        features = ((means[labels] + noise) @ turn).astype(np.float32)
        stage1 = HOME / "stage1" / f"fold{k}"
        stage1.mkdir(parents=True)
        save_file({"network": np.array([k])}, stage1 / "weights.safetensors")
        head = {"weight": means @ turn, "bias": np.zeros(len(COUNTS))}
        save_head(stage1 / "head.safetensors", "linear", head)
        out = fold == k
        logits = features[out] @ head["weight"].T
        oof = Predictions(ids[out], logits, labels[out], fold[out], features[out])
        oof.save(stage1 / "oof.npz")
        seal(stage1, inputs={"folds.csv": sha256(folder / "folds.csv")})
        name = digest({"weights": sha256(stage1 / "weights.safetensors")})[:12]
        cache = HOME / "stage2/features" / stage1.name
        save_features(cache / f"plain-{name}.npz", ids[~out], features[~out])


def config(keys=None, heads=None, **search) -> Config:
    """cRT whose own learning rate learns nothing; larger ones do."""
    crt = {"head": "crt", "lr": 1e-6, "epochs": 8, "batch_size": 16, "weight_decay": 0.0}
    keys = keys or {KEY: {"low": 1e-6, "high": 1.0, "log": True}}
    spec = {"stage2": {"keys": keys, "trials": 6} | search.pop("stage2", {})} | search
    tree = {"data": {"name": "made"}, "stage2": heads or [crt, {"head": "ncm"}], "search": spec}
    return parse_config(tree | {"train": {"precision": "fp32"}})


def score(head: str, folds: list[int]) -> float:
    """Balanced accuracy of a head over the held-out images of some folds."""
    found = [load_predictions(HOME / f"stage2/{head}/fold{k}/oof.npz", 4) for k in folds]
    labels = np.concatenate([part.label for part in found])
    return balanced_accuracy(np.concatenate([part.logits for part in found]), labels)


def trials() -> pd.DataFrame:
    return read_table(SEARCH / "trials.csv", ("trial", "score", KEY))


# ---- what it finds and what becomes of it ------------------------------------------------------


def test_a_better_value_is_found_and_03_uses_it_and_says_so(capsys):
    tables = search_heads(config(), "exp", overwrite=False)
    assert list(tables) == ["crt"] and len(tables["crt"]) == 6  # ncm has nothing to search
    rows, best = trials(), read_json(SEARCH / "best.json")
    assert rows[KEY][0] == 1e-6 and best["score"] == rows["score"].max() > rows["score"][0] + 0.2
    assert best["values"][KEY] > 1e-3
    assert best["gain"] > 3 * best["noise"] > 0 and best["images"] == 36
    assert (SEARCH / "history.png").is_file() and (SEARCH / MANIFEST).is_file()
    search_heads(config(), "exp", overwrite=False)
    assert "finished already, skipped" in capsys.readouterr().out

    stage2(config(stage2={"use": False}), "exp", False)
    assert "best.json" not in capsys.readouterr().out
    before = score("crt", [0])
    assert score("crt", [1, 2]) == rows["score"][0]  # the first trial is what 03 does without it
    with pytest.raises(UserError, match=r"head.lr: 1e-06 there, .* now"):
        stage2(config(), "exp", False)
    capsys.readouterr()
    stage2(config(), "exp", True)
    said = [line for line in capsys.readouterr().out.splitlines() if "best.json" in line]
    assert len(said) == 1 and f"{KEY} = {best['values'][KEY]!r} (config: 1e-06)" in said[0]
    assert "on fold 0, where nothing was chosen, +0." in said[0]
    assert score("crt", [1, 2]) == best["score"]  # what was promised
    assert score("crt", [0]) - before == pytest.approx(best["gain"])
    manifest = read_json(HOME / "stage2/crt/fold1/manifest.json")
    assert manifest["searched"] == best["values"]
    assert read_json(HOME / "stage2/ncm/fold1/manifest.json")["searched"] == {}


def test_each_head_has_a_search_of_its_own_with_whole_numbers_and_choices():
    heads = [{"head": "crt", "name": "a", "epochs": 2}, {"head": "lws", "epochs": 2}]
    heads += [{"head": "ncm", "features": "un"}]
    keys = {
        "a.epochs": {"low": 1, "high": 4},
        "lws.sampler": {"choices": ["instance", "class_balanced"]},
        "ncm.features": {"choices": ["un", "l2n", "cl2n"]},
    }
    searched = config(keys, heads, stage2={"trials": 4})
    tables = search_heads(searched, "exp", overwrite=False)
    assert {name: len(rows) for name, rows in tables.items()} == {"a": 4, "lws": 4, "ncm": 4}
    stage2(searched, "exp", False)
    for name in ("a", "lws", "ncm"):
        best = read_json(HOME / f"stage2/{name}/search/best.json")
        ((key, value),) = best["values"].items()
        made = read_json(HOME / f"stage2/{name}/fold0/manifest.json")["settings"]["head"]
        assert made[key.split(".")[1]] == value
        assert score(name, [1, 2]) == best["score"]


def test_a_number_of_epochs_can_be_searched_where_the_config_has_none():
    heads = [{"head": "crt", "batch_size": 16}, {"head": "ncm"}]
    keys = {"crt.epochs": {"low": 1, "high": 3}}
    search_heads(config(keys, heads, stage2={"trials": 4}), "exp", overwrite=False)
    tried = read_table(SEARCH / "trials.csv", ("score", "crt.epochs"))["crt.epochs"]
    assert set(tried) <= {1, 2, 3}
    best = read_json(SEARCH / "best.json")["values"]
    stage2(config(keys, heads), "exp", False)
    made = read_json(HOME / "stage2/crt/fold0/manifest.json")["settings"]["head"]
    assert made["epochs"] == best["crt.epochs"]


def test_other_keys_than_were_searched_stop_03():
    search_heads(config(stage2={"trials": 1}), "exp", overwrite=False)
    other = config({"crt.weight_decay": {"low": 0.1, "high": 1.0}})
    with pytest.raises(UserError, match=r"search.stage2.keys now has \['crt.weight_decay'\]"):
        stage2(other, "exp", False)
    with pytest.raises(UserError, match="made with another config"):
        search_heads(other, "exp", overwrite=False)
    search_heads(other, "exp", overwrite=True)
    stage2(other, "exp", False)


# ---- what it never reads -----------------------------------------------------------------------


def shuffle_held_out(fold: int) -> None:
    """Give the held-out images of a fold each other's labels and features of nothing."""
    path = HOME / f"stage1/fold{fold}/oof.npz"
    p, rng = load_predictions(path, 4), np.random.default_rng(9)
    noise = rng.normal(size=p.features.shape).astype(np.float32)
    Predictions(p.image_id, p.logits, rng.permutation(p.label), p.fold, noise).save(path)
    seal(path.parent)


def test_trials_never_read_what_is_held_out_of_the_judging_fold():
    searched = config(stage2={"trials": 8})  # half of them proposed by the model of the scores
    search_heads(searched, "exp", overwrite=False)
    before, judged = trials(), read_json(SEARCH / "best.json")
    shuffle_held_out(0)
    search_heads(searched, "exp", overwrite=True)
    after, misled = trials(), read_json(SEARCH / "best.json")
    assert before[["score", KEY]].equals(after[["score", KEY]])
    assert misled["values"] == judged["values"] and misled["gain"] != judged["gain"]
    shuffle_held_out(1)
    search_heads(searched, "exp", overwrite=True)
    assert not before["score"].equals(trials()["score"])  # but those of the others they do


def test_nothing_is_scored_on_features_that_a_network_was_fitted_to(monkeypatch):
    seen, head_logits = [], searching.head_logits

    def watched(features, *rest):
        seen.append(features.copy())
        return head_logits(features, *rest)

    monkeypatch.setattr(searching, "head_logits", watched)
    search_heads(config(stage2={"trials": 2}), "exp", overwrite=False)
    out = {k: load_predictions(HOME / f"stage1/fold{k}/oof.npz", 4).features for k in range(FOLDS)}
    expected = [1, 2, 1, 2, 0, 0]  # two trials, then the winner and the config's own values
    assert len(seen) == len(expected)
    assert all(np.array_equal(f, out[k]) for f, k in zip(seen, expected, strict=True))


def test_held_out_features_are_read_once_per_fold_for_all_heads(monkeypatch):
    read, load = [], stage2_module.load_predictions

    def counted(path, *rest):
        read.append(path)
        return load(path, *rest)

    monkeypatch.setattr(stage2_module, "load_predictions", counted)
    once = [HOME / f"stage1/fold{k}/oof.npz" for k in range(FOLDS)]
    heads = [{"head": "crt", "epochs": 2}, {"head": "lws", "epochs": 2}, {"head": "ncm"}]
    keys = {"crt.lr": {"low": 0.1, "high": 1.0}, "ncm.features": {"choices": ["un", "l2n"]}}
    search_heads(config(keys, heads, stage2={"trials": 2}), "exp", overwrite=False)
    assert sorted(read) == once
    read.clear()
    stage2(config(keys, heads), "exp", False)
    assert read == once
    stage2(config(keys, heads), "exp", False)
    assert read == once  # all is finished: nothing is read


# ---- resumed and shared ------------------------------------------------------------------------


def test_killed_within_a_trial_it_ends_with_the_same_trials(monkeypatch):
    search_heads(config(), "exp", overwrite=False)
    whole = trials()
    fit, calls = searching.fit, 0

    def killed(*args):
        nonlocal calls
        calls += 1
        if calls == 6:  # the second fold of the third trial
            raise KeyboardInterrupt
        return fit(*args)

    monkeypatch.setattr(searching, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        search_heads(config(), "exp", overwrite=True)
    assert len(trials()) == 2 and not (SEARCH / MANIFEST).exists()
    search_heads(config(), "exp", overwrite=False)
    again = trials()
    assert again[KEY].tolist() == whole[KEY].tolist()
    assert again["score"].tolist() == whole["score"].tolist()
    search_heads(config(stage2={"trials": 8}), "exp", overwrite=False)
    assert len(trials()) == 8 and trials()["score"][:6].tolist() == whole["score"].tolist()


def test_an_unfinished_search_is_not_used_and_03_says_so(monkeypatch, capsys):
    monkeypatch.setattr(searching, "fit", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        search_heads(config(), "exp", overwrite=False)
    stage2(config(), "exp", False)
    assert f"{SEARCH} is unfinished and not used" in capsys.readouterr().out


WORKER = """
import os, sys, time
from pathlib import Path
import src.rebalance.trials as searching
from tests.test_search_stage2 import config
fit = searching.fit
def slow(*args):
    time.sleep(0.2)
    return fit(*args)
searching.fit = slow
Path(f"ready{os.getpid()}").touch()
while len(list(Path().glob("ready*"))) < 2:
    time.sleep(0.01)
searching.search_heads(config(stage2={"trials": 8}), "exp", overwrite=False)
"""


def test_two_workers_share_a_search_and_agree_on_the_winner():
    where = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    workers = [subprocess.Popen([sys.executable, "-c", WORKER], env=where) for _ in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    rows, best = trials(), read_json(SEARCH / "best.json")
    assert rows["trial"].tolist() == list(range(8)) and rows["worker"].nunique() == 2
    assert rows[KEY].nunique() == 8 and best["score"] == rows["score"].max()


# ---- errors in words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{ctr.lr: {low: 0.1, high: 1.0}}", r"stage2, which has \['crt', 'ncm'\]; .* crt.lr"),
        ("{lr: {low: 0.1, high: 1.0}}", r"expected <head>.<key> .* \['crt', 'ncm'\]"),
        ("{crt.weight_deca: {low: 0.1, high: 1.0}}", "did you mean crt.weight_decay"),
        ("{ncm.lr: {low: 0.1, high: 1.0}}", "the keys of ncm are views, features, distance"),
        ("{crt.name: {choices: [a, b]}}", "the keys of crt are sampler"),
        ("{crt.smoothing: {low: 0.0, high: 1.0}}", "less than 1"),
        ("{crt.sampler: {choices: [instance, invers]}}", "did you mean 'reversed'|Input should"),
        ("{crt.lr: {low: 0, high: 1.0, log: true}}", "low must be above 0"),
    ],
)
def test_a_wrong_head_key_or_range_is_an_error_in_words(keys, message):
    Path("a.yaml").write_text("stage2: [{head: crt}, {head: ncm}]\n")
    with pytest.raises(UserError, match=message):
        load_config("a.yaml", [f"search.stage2.keys={keys}"])


def test_a_head_with_a_running_backbone_has_no_cached_features():
    Path("a.yaml").write_text("stage2: [{head: crt, bn: train}]\n")
    with pytest.raises(UserError, match="crt has bn: train"):
        load_config("a.yaml", ["search.stage2.keys={crt.lr: {low: 0.1, high: 1.0}}"])


def test_by_default_the_weight_decay_of_what_is_trained_is_searched():
    heads = [{"head": "crt"}, {"head": "crt", "name": "live", "bn": "train"}, {"head": "ncm"}]
    heads += [{"head": "maxnorm", "name": "x"}]
    found = head_ranges(parse_config({"stage2": heads}))
    assert {name: list(ranges) for name, ranges in found.items()} == {
        "crt": ["crt.weight_decay"],
        "live": [],
        "ncm": [],
        "x": ["x.weight_decay", "x.ratio"],
    }
    with pytest.raises(UserError, match=r"nothing to search.* \['ncm'\]"):
        tree = {"data": {"name": "made"}, "stage2": [{"head": "ncm"}]}
        search_heads(parse_config(tree), "exp", overwrite=False)


def test_without_the_judging_fold_or_any_other_it_says_what_is_missing():
    (HOME / "stage1/fold0" / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"search.fold=0 .* finished are \['fold1', 'fold2'\]"):
        search_heads(config(), "exp", overwrite=False)
    search_heads(config(fold=2, stage2={"trials": 1}), "exp", overwrite=False)
    (HOME / "stage1/fold1" / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"finished are \['fold2'\]"):
        search_heads(config(fold=2), "exp", overwrite=True)


def test_values_with_which_training_diverges_are_pruned_and_say_why():
    keys = {
        KEY: {"low": 1e-6, "high": 1e30, "log": True},
        "crt.weight_decay": {"low": 0.0, "high": 1.0},
    }
    rows = search_heads(config(keys), "exp", overwrite=False)["crt"]
    bad = rows[rows["state"] == "pruned"]
    assert len(bad) and bad["note"].str.contains("no longer finite").all()
    assert read_json(SEARCH / "best.json")["values"][KEY] < 1e10
