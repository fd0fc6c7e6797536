"""A small real competition that 01 prepared once, for the tests of the stages after it."""

import gc
import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests share the cores

import pytest
import torch
from accelerate.state import AcceleratorState

from src import cli
from src.config.read import load_config
from src.config.schema import Config
from src.prepare.prepare import prepare

ROOT = Path(__file__).parents[1]
QUICK = [
    "folds.k=3",
    "train.epochs=2",
    "train.warmup_epochs=0",
    "train.eval_every=1",
    "train.lr=0.05",
]


MANY = 100  # tests from which it pays


def pytest_collection_finish(session):
    """Every network that is let go runs the garbage collector; what is imported need not be looked
    at each time, which takes as long as training one here."""
    if len(session.items) >= MANY:
        gc.collect()
        gc.freeze()


def pytest_sessionfinish(session):
    if getattr(session, "testscollected", 0) >= MANY:
        gc.unfreeze()  # libraries look for what they leaked


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A directory with data/raw/digits and runs/digits/folds of three folds."""
    home = tmp_path_factory.mktemp("digits")
    before = os.getcwd()
    os.chdir(home)
    try:
        prepare(load_config(ROOT / "configs" / "digits.yaml", QUICK))
    finally:
        os.chdir(before)
    return home


@pytest.fixture(autouse=True)
def whole_lines(monkeypatch):
    """What is printed is compared as it was written; tests/test_progress.py is about lines."""
    monkeypatch.setattr(cli, "WIDTH", 10**6)


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """Drawing them takes longer than training on so few images; a test with the fixture `curves`
    has them."""
    if "curves" not in request.fixturenames:
        monkeypatch.setattr("src.training.stage1._draw", lambda stage1: None)


@pytest.fixture
def curves() -> None:
    """Stage 1 draws its learning curves."""


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """A process has one precision for good; tests want several."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def double(monkeypatch):
    """`.float()` leaves float64 alone, so that a gradient can be compared with differences."""

    def at_least_float(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)

    monkeypatch.setattr(torch.Tensor, "float", at_least_float)


@pytest.fixture
def digits(prepared, tmp_path, monkeypatch) -> Path:
    """The working directory of a test: a copy of the prepared runs, beside the same images."""
    (tmp_path / "data").symlink_to(prepared / "data")
    shutil.copytree(prepared / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    torch.set_num_threads(1)  # tests share two cores
    return tmp_path


def digits_config(*overrides: str) -> Config:
    """The demo's config, two epochs, three folds."""
    return load_config(ROOT / "configs" / "digits.yaml", [*QUICK, *overrides])
