"""The recipes in configs/slurm, each run as it is, with processes on the CPU for nodes and GPUs."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from src.artifacts.predictions import load_predictions
from src.config.tree import dump_config
from src.training.stage1 import stage1
from tests.conftest import ROOT
from tests.training_kit import tiny_config, tiny_dataset

SLURM = ROOT / "configs" / "slurm"
FOLD = Path("runs/tiny/{}/stage1/fold{}")
BYTES = ("weights.safetensors", "head.safetensors", "oof.npz")


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> dict[str, str]:
    """A working directory with the scripts, a config and a dataset; the environment of a job."""
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    for path in ROOT.glob("0*.py"):
        Path(path.name).symlink_to(path)
    tree = dump_config(tiny_config(train={"epochs": 1}, stage2=["ncm"]))
    Path("exp.yaml").write_text(yaml.safe_dump(tree))
    shims = tmp_path / "bin"
    shims.mkdir()
    for name, does in {
        "scontrol": "echo localhost; echo localhost",
        # as on two nodes: the command once on each
        "srun": 'shift; "$@" & first=$!; "$@" & second=$!; wait $first && wait $second',
    }.items():
        (shims / name).write_text(f"#!/bin/bash\n{does}\n")
        (shims / name).chmod(0o755)
    found = os.environ | {"PATH": f"{shims}:{os.environ['PATH']}", "PYTHON": sys.executable}
    return found | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def job(script: str, environment: dict, *more: str) -> subprocess.Popen:
    command = ["bash", str(SLURM / script), "exp.yaml", *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def ended(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_folds_of_one_experiment_at_the_same_time_are_those_of_one_command(tiny):
    array = [job("folds.sbatch", tiny | {"SLURM_ARRAY_TASK_ID": str(k)}) for k in (0, 1)]
    for task in array:
        ended(task)
    stage1(tiny_config(train={"epochs": 1}, stage2=["ncm"]), "alone", [], False)
    for fold in (0, 1):
        for name in BYTES:
            one, other = (Path(str(FOLD).format(e, fold)) / name for e in ("exp", "alone"))
            assert one.read_bytes() == other.read_bytes(), (fold, name)


@pytest.mark.slow
def test_two_nodes_train_one_network(tiny):
    """Found over c10d's rendezvous, gradients over gloo. Batch norm, which would see half a batch
    each, keeps its statistics: what comes out is then what one process makes."""
    with socket.socket() as free:
        free.bind(("", 0))
        number = free.getsockname()[1]
    slurm = {"SLURM_JOB_ID": str(number)}
    slurm |= {"SLURM_JOB_NODELIST": "x", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    said = ended(
        job("nodes.sbatch", tiny | slurm, "--set", "train.freeze_batchnorm=true", "--folds", "0")
    )
    assert said.count("fold0 epoch 1/1 ·") == 1  # one process speaks
    train = {"epochs": 1, "freeze_batchnorm": True}
    stage1(tiny_config(train=train, stage2=["ncm"]), "alone", ["0"], False)
    found, alone = (load_predictions(Path(str(FOLD).format(e, 0)) / "oof.npz", 6)
                    for e in ("exp", "alone"))  # fmt: skip
    assert found.image_id.tolist() == alone.image_id.tolist()
    np.testing.assert_allclose(found.logits, alone.logits, rtol=1e-3, atol=1e-3)


def test_folds_go_round_the_devices_and_a_failure_is_one(tiny, tmp_path):
    says = tmp_path / "python"
    says.write_text('#!/bin/bash\necho "$CUDA_VISIBLE_DEVICES: $*"\n[[ "$*" != *"--folds 2" ]]\n')
    says.chmod(0o755)
    environment = tiny | {"PYTHON": str(says), "DEVICES": "0 1", "FOLDS": "0 1 3 4"}
    ended(job("devices.sh", environment, "--set", "seed=1"))
    logs = {path.stem: path.read_text().strip() for path in Path("runs/logs").glob("*.log")}
    assert logs["exp-fold0"] == "0: 02_train_stage1.py --config exp.yaml --set seed=1 --folds 0"
    devices = [logs[f"exp-fold{k}"].partition(":")[0] for k in (0, 1, 3, 4)]
    assert devices == ["0", "1", "0", "1"]
    failing = job("devices.sh", environment | {"FOLDS": "0 1 2 3 4"})
    failing.communicate()
    assert failing.returncode == 1 and "--folds 3" in Path("runs/logs/exp-fold3.log").read_text()


def test_the_rest_stops_at_the_first_refusal(tiny, tmp_path):
    says = tmp_path / "python"
    says.write_text('#!/bin/bash\necho "$*" >> said.txt\n[[ "$*" != 05* ]]\n')
    says.chmod(0o755)
    last = job("rest.sbatch", tiny | {"PYTHON": str(says)}, "--folds", "0")
    last.communicate()
    assert last.returncode == 1
    assert Path("said.txt").read_text().splitlines() == [
        f"{script} --config exp.yaml --folds 0"
        for script in ("03_train_stage2.py", "04_posthoc_calibrate.py", "05_predict.py")
    ]
