"""kill -9 in the middle of 02, 03 and 05, start again: the same bytes as an undisturbed run.

(01 has its own in test_prepare_run.py.) Real processes and signals; what is not to be killed runs
in the process of the test.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import pytest

from src.artifacts.files import sha256
from src.config.read import load_config
from src.inference.predict import predict
from src.posthoc.calibrate import posthoc
from src.rebalance.stage2 import stage2
from src.training.stage1 import stage1
from tests.conftest import QUICK, ROOT

CONFIG = str(ROOT / "configs" / "digits.yaml")
SETTINGS = [*QUICK, "model.image_size=8", "train.epochs=3", "train.eval_every=3"]
SETTINGS += ["predict.tta.flip=true", "predict.tta.scales=[1.0, 1.3]"]
STAGES = {
    "02_train_stage1.py": lambda *how: stage1(*how, [], False),
    "03_train_stage2.py": lambda *how: stage2(*how, False),
    "04_posthoc_calibrate.py": posthoc,
    "05_predict.py": lambda *how: predict(*how, False),
}


def command(script: str) -> list[str]:
    return [sys.executable, str(ROOT / script), "--config", CONFIG, "--set", *SETTINGS]


def run(script: str, where: Path) -> None:
    """In this process: starting one takes longer than these stages."""
    config = load_config(CONFIG, SETTINGS)
    with chdir(where):
        STAGES[script](config, "digits")


def kill_when(script: str, where: Path, pattern: str) -> None:
    """Start a stage and kill it once a file that matches appears; the stage must be unfinished."""
    process = subprocess.Popen(
        command(script), cwd=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.time() + 120
    while not list(where.glob(pattern)):
        assert process.poll() is None and time.time() < deadline, f"{script} never got to {pattern}"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def results(where: Path) -> dict[str, str]:
    """Weights, heads and logits: everything but logs, clocks and caches."""
    home = where / "runs" / "digits" / "digits"
    found = [*home.rglob("*.safetensors"), *home.rglob("oof.npz"), *home.glob("predict/*.npz")]
    return {str(path.relative_to(home)): sha256(path) for path in found}


@pytest.mark.slow
def test_killed_and_restarted_stages_leave_the_same_bytes(digits):
    calm, rough = digits / "calm", digits / "rough"
    for where in (calm, rough):
        where.mkdir()
        (where / "data").symlink_to(digits / "data")
        subprocess.run(["cp", "-r", str(digits / "runs"), str(where)], check=True)
    for script in STAGES:
        run(script, calm)
    home = "runs/digits/digits"
    train, rebalance, calibrate, infer = STAGES
    kill_when(train, rough, f"{home}/stage1/fold1/last.pt")
    assert not (rough / home / "stage1/fold1/manifest.json").exists()
    run(train, rough)
    kill_when(rebalance, rough, f"{home}/stage2/crt/fold0/head.safetensors")
    assert not (rough / home / "stage2/ncm/fold2/manifest.json").exists()
    run(rebalance, rough)
    run(calibrate, rough)
    kill_when(infer, rough, f"{home}/predict/cache/*.view.npz")
    assert not (rough / home / "predict/manifest.json").exists()
    run(infer, rough)
    expected = results(calm)
    assert len(expected) == 3 * 3 + 2 * 3 * 2 + 1 + 4  # stage1, two heads, posthoc, predictions
    assert results(rough) == expected
    assert not list((rough / "runs").rglob("*.tmp"))
