"""06 --bundle: offline, elsewhere, on hidden images, the submission that 05 and 06 write here."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from src.artifacts.dataset import load_dataset
from src.artifacts.files import write_table
from src.bundle.make import make_bundle
from src.bundle.wheels import wheels
from src.ensemble.ensemble import ensemble
from src.errors import UserError
from src.inference.predict import predict
from src.posthoc.calibrate import posthoc
from src.training import stage1
from tests.fabricate import seal
from tests.training_kit import DATASET, tiny_config, tiny_dataset

NO_NETWORK = """
import socket
def refuse(*args, **kwargs):
    raise SystemExit("a socket was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """An experiment that went through 02 … 06, and its hidden images with their sample."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    data = tiny_dataset()
    chosen = data.images.iloc[::3].sort_values("sha1", kind="stable")[::-1]
    hidden = tmp_path / "hidden" / "test"
    hidden.mkdir(parents=True)
    for path in chosen["path"]:
        shutil.copy(path, hidden)
    write_table(data.directory / "test.csv", chosen[["image_id", "path"]])
    sample = tmp_path / "hidden" / "sample_submission.csv"
    write_table(sample, pd.DataFrame({"Id": chosen["image_id"], "Category": "0"}))
    facts = {"submission": {"id_column": "Id", "label_column": "Category"}, "solution": None}
    seal(data.directory, sample_submission=str(sample), settings={}, inputs={}, **facts)
    config = tiny_config(
        train={"epochs": 1, "warmup_epochs": 0}, stage2=[], posthoc={"steps": ["temperature"]}
    )
    stage1.stage1(config, "mine", [], False)
    posthoc(config, "mine")
    predict(config, "mine", False)
    result = ensemble([config], ["mine"])
    assert len(load_dataset(DATASET).test) == len(chosen) > 10
    return config, result.submission, hidden, sample


def test_a_bundle_writes_the_same_submission_without_network_or_this_directory(
    submitted, tmp_path, monkeypatch
):
    config, submission, hidden, sample = submitted
    made = make_bundle([config], ["mine"], [], Path("out") / "bundle.zip")
    elsewhere = tmp_path / "elsewhere"
    with zipfile.ZipFile(made) as archive:
        names = archive.namelist()
        archive.extractall(elsewhere / "bundle")
    assert not [n for n in names if n.endswith(".png") or "last.pt" in n or "predict/" in n]
    expected = submission.read_bytes()
    logits = Path("runs", DATASET, "mine", "predict", "posthoc.npz").read_bytes()
    shutil.rmtree(tmp_path / "home")  # nothing of it is read
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(NO_NETWORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "block"))
    monkeypatch.chdir(elsewhere)
    notebook = json.loads((elsewhere / "bundle" / "notebook.ipynb").read_text())
    cell = "".join(notebook["cells"][0]["source"])
    cell = cell.replace("/kaggle/input/bundle", "bundle")
    cell = cell.replace("/kaggle/input/competition/test", str(hidden))
    before = sorted((elsewhere / "bundle").rglob("*"))
    call = "import socket; socket.create_connection(('127.0.0.1', 9))"
    blocked = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
    assert "a socket was opened" in blocked.stderr
    subprocess.run([sys.executable, "-c", cell], check=True)
    assert (elsewhere / "submission.csv").read_bytes() == expected
    again = elsewhere / "bundle_work" / "runs" / DATASET / "mine" / "predict" / "posthoc.npz"
    assert again.read_bytes() == logits
    assert [
        p for p in sorted((elsewhere / "bundle").rglob("*")) if "__pycache__" not in str(p)
    ] == (before)


def test_what_cannot_come_along_is_said_before_anything_is_written(submitted):
    config = submitted[0]
    out = Path("bundle")
    tta = config.predict.model_copy(
        update={"tta": config.predict.tta.model_copy(update={"weights": "fitted"})}
    )
    with pytest.raises(UserError, match="fitted on training images"):
        make_bundle([config.model_copy(update={"predict": tta})], ["mine"], [], out)
    columns = config.data.model_copy(update={"columns": ("month",)})
    with pytest.raises(UserError, match="month"):
        make_bundle([config.model_copy(update={"data": columns})], ["mine"], [], out)
    far = config.model_copy(update={"metric": "python:/far/away.py:score"})
    with pytest.raises(UserError, match="/far/away.py, which cannot come along"):
        make_bundle([far], ["mine"], [], out)
    out.mkdir()
    with pytest.raises(UserError, match="is there already"):
        make_bundle([config], ["mine"], [], out)


def test_wheels_name_exactly_what_predicting_needs():
    names = {line.partition("==")[0]: line for line in wheels()}
    assert {"torch", "timm", "pandas", "scikit-learn", "typing-extensions"} <= set(names)
    assert not {"pytest", "ruff", "peft"} & set(names)
    assert all(line.count("==") == 1 and not line.endswith("==") for line in names.values())
