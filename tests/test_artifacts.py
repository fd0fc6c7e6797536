"""Files are whole or not there, finished work is recognised, and ids stay text."""

import os
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

import src.artifacts.predictions as predictions_module
from src.artifacts.files import (
    read_arrays,
    read_json,
    read_table,
    write_arrays,
    write_atomic,
    write_json,
    write_table,
    write_text,
)
from src.artifacts.ids import check_same_ids
from src.artifacts.predictions import Predictions, load_predictions, stack
from src.artifacts.work import Work, made, require, settled
from src.config.losses import BalancedSoftmax
from src.config.training import Train
from src.errors import UserError
from tests.fabricate import count


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")

    def fail(file):
        file.write(b"half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk_is_said_in_words_and_nothing_is_half_written(small_disk):
    old = write_arrays(small_disk / "a.npz", x=np.zeros(10))
    with pytest.raises(UserError, match="disk is full"):
        write_arrays(small_disk / "a.npz", x=np.zeros(2**20))
    assert read_arrays(old)["x"].shape == (10,)
    assert os.listdir(small_disk) == ["a.npz"]
    with pytest.raises(UserError, match="disk is full"):
        write_text(small_disk / "new" / "b.csv", "x" * 2**21)


def test_ids_stay_text(tmp_path):
    ids = ["00123", "1e5", "NA", "null", "3.0", "", " x"]
    write_table(tmp_path / "t.csv", pd.DataFrame({"id": ids, "n": range(7)}))
    found = read_table(tmp_path / "t.csv", ("n",))
    assert found["id"].tolist() == ids
    assert found["n"].sum() == 21


def test_a_bad_table_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(UserError, match="not a readable CSV"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("a\nx\n")
    with pytest.raises(UserError, match="should hold numbers"):
        read_table(tmp_path / "t.csv", ("a",))
    with pytest.raises(UserError, match="'b' is missing"):
        read_table(tmp_path / "t.csv", ("b",))
    (tmp_path / "x.npz").write_text("no zip")
    with pytest.raises(UserError, match="not a readable .npz"):
        read_arrays(tmp_path / "x.npz")


def step(tmp_path, settings=None, **options) -> Work:
    source = tmp_path / "input.csv"
    if not source.exists():
        source.write_text("1")
    return Work(
        tmp_path / "out", settings or {"train": {"lr": 1}}, {"input.csv": source}, **options
    )


def finish(work: Work) -> None:
    write_text(work.directory / "a.txt", "a")
    work.finish(["a.txt"], {"score": 1.0})


def test_finished_work_is_skipped_and_says_so(tmp_path, capsys):
    assert not step(tmp_path).finished()
    finish(step(tmp_path))
    assert step(tmp_path).finished()
    assert "finished already, skipped" in capsys.readouterr().out
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["status"] == "finished" and manifest["metrics"] == {"score": 1.0}
    assert {"argv", "git", "inputs", "outputs", "versions", "seconds"} <= manifest.keys()


def test_another_config_stops_and_names_the_keys(tmp_path):
    finish(step(tmp_path))
    with pytest.raises(UserError, match=r"train.lr: 1 there, 2 now"):
        step(tmp_path, {"train": {"lr": 2}}).finished()


def test_what_is_overwritten_stays_until_the_new_is_complete(tmp_path, monkeypatch):
    finish(step(tmp_path))
    write_text(tmp_path / "out" / "old.txt", "old")
    other = {"train": {"lr": 2}}
    work = step(tmp_path, other, overwrite=True)
    assert not work.finished()
    assert step(tmp_path).finished()  # nothing was written yet
    write_text(work.directory / "half.txt", "half")
    again = step(tmp_path, other)  # of a stopped one goes on
    assert not again.finished() and (again.directory / "half.txt").is_file()
    with pytest.raises(
        UserError, match="(?s)lr: 2 there, 1 now.*or remove .*/.out.new to keep .*/out"
    ):
        step(tmp_path).check_settings(other, again.directory)
    assert read_json(tmp_path / "out" / "manifest.json")["settings"]["train"] == {"lr": 1}
    work = step(tmp_path, other, overwrite=True)
    assert not list(tmp_path.rglob("half.txt"))  # begun again
    finish(work)
    assert work.directory == tmp_path / "out" and step(tmp_path, other).finished()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.txt", "manifest.json"]


@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_killed_while_it_is_put_in_place(tmp_path, monkeypatch, when):
    finish(step(tmp_path))
    work = step(tmp_path, {"train": {"lr": 2}}, overwrite=True)
    remove = shutil.rmtree

    def killed(path):
        if when == "after":
            remove(path)
        elif when == "within":
            (path / "a.txt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        finish(work)
    assert step(tmp_path, {"train": {"lr": 2}}).finished()
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["out"]


def test_a_key_that_did_not_exist_yet_counts_as_its_default(tmp_path):
    finish(step(tmp_path, {"train": Train(epochs=9, criterion=BalancedSoftmax())}))
    path = tmp_path / "out" / "manifest.json"
    manifest = read_json(path)
    del manifest["settings"]["train"]["ema"], manifest["settings"]["train"]["criterion"]["tau"]
    write_json(path, manifest)
    assert step(tmp_path, {"train": Train(epochs=9, criterion=BalancedSoftmax())}).finished()
    with pytest.raises(UserError, match="train.ema: None there, 0.9 now"):
        changed = Train(epochs=9, criterion=BalancedSoftmax(), ema=0.9)
        step(tmp_path, {"train": changed}).finished()


def test_changed_inputs_and_lost_outputs_are_noticed(tmp_path):
    finish(step(tmp_path))
    (tmp_path / "input.csv").write_text("2")
    with pytest.raises(UserError, match="another 'input.csv'"):
        step(tmp_path, redo_on_new_inputs=False).finished()
    assert not step(tmp_path).finished()
    finish(step(tmp_path))
    (tmp_path / "out" / "a.txt").unlink()
    assert not step(tmp_path).finished()


def test_a_missing_stage_names_its_script(tmp_path):
    with pytest.raises(UserError, match="Run `python 03_train_stage2.py`"):
        require(tmp_path / "x", "03_train_stage2.py")


def predictions(ids, fold=0, k=3) -> Predictions:
    n = len(ids)
    rng = np.random.default_rng(n)
    return Predictions(
        np.array(ids), rng.normal(size=(n, k)), np.zeros(n, int), np.full(n, fold), None
    )


def test_predictions_come_back_by_id_whatever_the_order_of_rows(tmp_path):
    one = predictions(["b", "00123", "NA"])
    one.save(tmp_path / "p.npz")
    found = load_predictions(tmp_path / "p.npz", 3).take(["NA", "b", "00123"])
    np.testing.assert_allclose(found.logits, one.logits[[2, 0, 1]].astype(np.float32))


def test_bad_predictions_are_named(tmp_path):
    predictions(["a", "b"]).save(tmp_path / "p.npz")
    with pytest.raises(UserError, match="classes.csv has 4 classes"):
        load_predictions(tmp_path / "p.npz", 4)
    predictions(["a", "a"]).save(tmp_path / "p.npz")
    with pytest.raises(UserError, match="more than once: 'a'"):
        load_predictions(tmp_path / "p.npz", 3)
    with pytest.raises(UserError, match="more than once"):
        stack([predictions(["a", "b"]), predictions(["b", "c"], 1)])
    with pytest.raises(UserError, match=r"1 missing \('c'\), 1 too many \('a'\)"):
        check_same_ids(["a", "b"], ["b", "c"], "one", "two")
    bad = predictions(["a"])
    bad.logits[0, 0] = np.nan
    bad.save(tmp_path / "p.npz")
    with pytest.raises(UserError, match="NaN"):
        load_predictions(tmp_path / "p.npz", 3)


def test_what_is_sorted_already_is_not_copied(tmp_path, monkeypatch):
    """The logits of a large dataset are gigabytes."""
    found = predictions(["a", "b", "c"])
    taken = count(monkeypatch, Predictions, "take")
    ordered = count(monkeypatch, predictions_module.np, "argsort")
    path = found.save(tmp_path / "p.npz")
    again = load_predictions(path, 3)
    assert taken == ordered == []
    np.testing.assert_array_equal(again.logits, found.logits.astype(np.float32))
    monkeypatch.undo()
    rows = [2, 0, 1]
    write_arrays(path, **{name: array[rows] for name, array in read_arrays(path).items()})
    assert load_predictions(path, 3).image_id.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(load_predictions(path, 3).logits, again.logits)


def test_what_is_to_replace_something_is_not_made_yet(tmp_path):
    for name in ("fold1", "fold0", ".fold0.new"):
        write_json(tmp_path / name / "manifest.json", {})
    assert [p.parent.name for p in made(tmp_path, "manifest.json")] == ["fold0", "fold1"]
    assert settled(tmp_path / "fold1") and not settled(tmp_path / "fold0")
    assert not settled(tmp_path / "fold2")
