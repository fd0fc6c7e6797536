"""One flipped bit in anything that a stage left stops the next one, which names that very file."""

import hashlib
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from src.artifacts.files import read_json, sha256, write_json, write_text
from src.artifacts.work import MANIFEST, Work, checked
from src.config.read import parse_config
from src.ensemble.ensemble import ensemble
from src.errors import UserError
from src.inference.predict import predict
from src.posthoc.calibrate import posthoc
from src.prepare.prepare import prepare
from src.rebalance.stage2 import stage2
from src.rebalance.trials import search_heads
from src.report.context import gather
from src.report.page import write_report
from src.training.stage1 import stage1
from tests.conftest import digits_config

HOME = Path("runs/digits/exp")
HEADS = [
    {"head": "crt", "epochs": 1, "batch_size": 128},
    {"head": "crt", "name": "live", "bn": "train", "epochs": 1, "batch_size": 128},
]
KEYS = {"crt.lr": {"low": 0.01, "high": 1.0, "log": True}}


def config():
    tree = {"stage2": HEADS, "search": {"stage2": {"keys": KEYS, "trials": 2}}}
    return parse_config(digits_config("train.epochs=1").model_dump() | tree)


STAGES = {
    "01": lambda: prepare(config()),
    "02": lambda: stage1(config(), "exp", [], False),
    "search": lambda: search_heads(config(), "exp", False),
    "03": lambda: stage2(config(), "exp", False),
    "04": lambda: posthoc(config(), "exp"),
    "05": lambda: predict(config(), "exp", False),
    "06": lambda: ensemble([config()], ["exp"]),
    "report": lambda: write_report(gather("digits", ["exp"], [config()])),
}


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory) -> Path:
    """A directory in which all six scripts have run, without `full`."""
    home = tmp_path_factory.mktemp("whole")
    (home / "data").symlink_to(prepared / "data")
    shutil.copytree(prepared / "runs", home / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for stage in STAGES.values():
            stage()
    return home


@pytest.fixture
def finished(whole, tmp_path, monkeypatch) -> Path:
    (tmp_path / "data").symlink_to(whole / "data")
    shutil.copytree(whole / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flip(path: Path) -> None:
    """One bit in the middle, where a CSV has text and an .npz or safetensors numbers."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def unfinished(stage: str) -> None:
    """Take the manifests of a stage away, so that it reads what came before it again."""
    for path in {
        "02": HOME.glob("stage1/fold*/" + MANIFEST),
        "search": HOME.glob("stage2/*/search/" + MANIFEST),
        "03": HOME.glob("stage2/*/fold*/" + MANIFEST),
        "04": HOME.glob("posthoc/" + MANIFEST),
        "05": HOME.glob("predict/" + MANIFEST),
    }.get(stage, ()):
        path.unlink()
    for cache in (HOME / "stage2/features", HOME / "predict/cache"):
        shutil.rmtree(cache)  # their names are their digests


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("../folds/folds.csv", ["02", "search", "03", "04", "05", "06", "report"]),
        ("../folds/classes.csv", ["02", "search", "03", "04", "05", "06", "report"]),
        ("../folds/test.csv", ["02", "search", "03", "04", "05", "06", "report"]),
        ("../folds/duplicates.csv", ["report"]),
        ("stage1/fold1/weights.safetensors", ["search", "03", "05"]),
        ("stage1/fold1/head.safetensors", ["search", "03", "04", "05"]),
        ("stage1/fold1/oof.npz", ["search", "03", "04"]),
        ("stage1/fold1/metrics.csv", ["report"]),
        ("stage2/crt/search/best.json", ["03", "report"]),
        ("stage2/crt/search/trials.csv", ["report"]),
        ("stage2/crt/fold1/head.safetensors", ["04", "05"]),
        ("stage2/crt/fold1/oof.npz", ["04"]),
        ("stage2/live/fold1/batchnorm.safetensors", ["05"]),
        ("posthoc/posthoc.json", ["05", "06", "report"]),
        ("posthoc/table.csv", ["report"]),
        ("posthoc/oof.npz", ["06"]),
        ("predict/posthoc.npz", ["06"]),
    ],
)
def test_a_flipped_bit_stops_every_stage_that_reads_the_file(finished, name, stages):
    path = Path(os.path.normpath(HOME / name))
    flip(path)
    for stage in stages:
        shutil.copytree("runs", "before")
        unfinished(stage)
        with pytest.raises(UserError) as error:
            STAGES[stage]()
        assert str(error.value).startswith(f"{path}: damaged, or edited"), stage
        assert str(path.with_name(MANIFEST)) in str(error.value)
        shutil.rmtree("runs")
        Path("before").rename("runs")


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_whole_passes_and_is_read_for_its_hash_once(finished, stage, monkeypatch):
    unfinished(stage)
    time.sleep(0.2)  # younger files are not remembered
    hashed, digest = Counter(), hashlib.file_digest

    def counted(file, name):
        hashed[file.name] += 1
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    began = time.time()
    STAGES[stage]()
    old = {path for path in map(Path, hashed) if path.is_file() and path.stat().st_mtime < began}
    assert old and not {path: n for path, n in hashed.items() if n > 1 and Path(path) in old}


def test_damaged_own_work_is_done_again_with_the_same_bytes(finished, capsys):
    for stage, name in (
        ("01", "../folds/test.csv"),
        ("02", "stage1/fold1/weights.safetensors"),
        ("search", "stage2/crt/search/best.json"),
        ("03", "stage2/crt/fold1/oof.npz"),
        ("04", "posthoc/posthoc.json"),
        ("05", "predict/crt.npz"),
    ):
        path = HOME / name
        before = sha256(path)
        flip(path)
        STAGES[stage]()
        assert f"{path.name!r} changed since; doing it again" in capsys.readouterr().out, name
        assert sha256(path) == before, name


# ---- one file ----------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path, monkeypatch) -> Path:
    """A finished directory with a file, and one in a directory below."""
    monkeypatch.chdir(tmp_path)
    directory = Path("runs/d/folds")
    write_text(directory / "a.csv", "id\n1\n")
    write_text(directory / "figures/b.csv", "id\n2\n")
    Work(directory, {}, {}).finish(["a.csv", "figures/b.csv"])
    path = directory / MANIFEST
    write_json(path, read_json(path) | {"argv": ["01_x.py", "--config", "a b.yaml", "--overwrite"]})
    return directory


def test_the_error_says_what_was_found_and_what_to_do(made):
    for name in ("a.csv", "figures/b.csv"):
        old = sha256(made / name)
        flip(made / name)
        with pytest.raises(UserError) as error:
            checked(made / name)
        said = str(error.value)
        assert said.startswith(f"{made / name}: damaged, or edited")
        assert old[:12] in said and sha256(made / name)[:12] in said
        assert "run `python 01_x.py --config 'a b.yaml'` again" in said


def test_an_edit_on_purpose_is_kept_by_taking_the_file_out_of_the_manifest(made):
    flip(made / "a.csv")
    facts = read_json(made / MANIFEST)
    del facts["outputs"]["a.csv"]
    write_json(made / MANIFEST, facts)
    assert checked(made / "a.csv") == made / "a.csv"
    assert Work(made, {}, {}).finished()


def test_what_no_manifest_lists_is_left_alone(made, tmp_path):
    for path in ("runs/d/exp/stage1/fold0/oof.npz", "runs/d/folds/cache/x.npz", "data/train.csv"):
        assert checked(write_text(Path(path), "x")) == Path(path)
    write_json(tmp_path / "data" / MANIFEST, {"outputs": {"train.csv": "not ours"}})
    assert checked(Path("data/train.csv")) == Path("data/train.csv")
    assert checked(made / "none.csv") == made / "none.csv"  # whoever reads it says so


def test_damaged_inputs_are_noticed_before_anything_is_cleared(made):
    write_text(Path("runs/d/exp/old.txt"), "old")
    flip(made / "a.csv")
    with pytest.raises(UserError, match="a.csv: damaged"):
        Work(Path("runs/d/exp"), {}, {"a.csv": made / "a.csv"}, overwrite=True)
    assert Path("runs/d/exp/old.txt").is_file()


def test_a_hash_is_remembered_until_the_file_changes(tmp_path):
    path = write_text(tmp_path / "a.txt", "one")
    first = sha256(path)
    path.write_text("two")  # at once, as many bytes, in place
    assert sha256(path) != first
    time.sleep(0.2)
    second, about = sha256(path), path.stat()
    path.write_text("one")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert second == hashlib.sha256(b"two").hexdigest() and sha256(path) == first
