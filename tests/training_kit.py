"""A dataset of a few tiny images as 01 leaves it, and stage 1 on it: seconds per run."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

import src.training.fit as fit
import src.training.stage1 as stage1
from src.artifacts.dataset import Dataset, load_dataset
from src.artifacts.files import write_arrays, write_table
from src.artifacts.work import RUNS
from src.config.read import parse_config
from src.language.text import with_text
from src.runtime import start
from tests.fabricate import seal

DATASET = "tiny"
COUNTS = [12, 10, 6, 6, 4, 2]  # two classes in each bin
NAMES = ["crane", "heron", "robin", "swift", "finch", "wren"]  # of the classes, in words
BINS = ["many", "many", "medium", "medium", "few", "few"]
SIZE = 16
torch.set_num_threads(1)  # so little work that threads would only wait for each other


def tiny_dataset() -> Dataset:
    """Writes runs/tiny/folds below the working directory: two folds of noisy flat colours."""
    directory = RUNS / DATASET / "folds"
    images = directory / "images"
    images.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for label, count in enumerate(COUNTS):
        for i in range(count):
            colour = 40 * label + rng.integers(-30, 30, (SIZE, SIZE, 3))
            path = images / f"c{label}_{i}.png"
            Image.fromarray(colour.clip(0, 255).astype(np.uint8)).save(path)
            rows.append({"image_id": path.stem, "path": str(path), "label": label, "fold": i % 2})
    table = pd.DataFrame(rows).assign(class_id=lambda t: t["label"].astype(str))
    table = table.assign(group_id="", width=SIZE, height=SIZE, sha1="", phash="")
    write_table(directory / "folds.csv", table.sort_values("image_id"))
    ids = [str(label) for label in range(len(COUNTS))]
    classes = {"label": range(len(COUNTS)), "class_id": ids, "class_name": NAMES}
    classes = pd.DataFrame(classes | {"count": COUNTS, "bin": BINS})
    write_table(directory / "classes.csv", classes)
    write_table(directory / "test.csv", table[["image_id", "path"]].head(2))
    seal(directory, status="finished")
    return load_dataset(DATASET)


def tiny_text(width: int = 5, file: str = "class_text.npz") -> dict:
    """Writes vectors of the classes' names, [K, E], as if made elsewhere; returns the section text
    of a config that takes them."""
    rows = np.random.default_rng(1).normal(size=(len(COUNTS), width)).astype(np.float32)
    write_arrays(file, class_id=np.arange(len(COUNTS)).astype(str), embeddings=rows)
    return {"encoder": {"name": "npz", "file": file}}


def tiny_config(model: dict | None = None, train: dict | None = None, **sections):
    return parse_config(
        {
            "data": {"root": DATASET, "workers": 0},
            "model": {"backbone": "cifar_resnet20", "pretrained": False, "image_size": SIZE}
            | (model or {}),
            "train": {
                "epochs": 3, "batch_size": 8, "optimizer": "sgd", "lr": 0.05, "precision": "fp32",
                "weight_decay": 1e-4, "augment": {"crop": "padded"},
            }
            | (train or {}),
        }
        | sections
    )  # fmt: skip


def train_tiny(config, experiment: str, stop_after: int | None = None, monkeypatch=None) -> Path:
    """Train fold 0; returns its directory. stop_after: epochs after which the run is killed."""
    directory = RUNS / DATASET / experiment / "stage1" / "fold0"
    accelerator = start("fp32")
    data = with_text(load_dataset(DATASET), config, (config.model, config.train), accelerator)
    job = stage1.Fold(config, data, 0, directory, accelerator)
    if stop_after is None:
        stage1.train_fold(job, overwrite=False)
        return directory
    save = fit.save_checkpoint

    def save_and_stop(where: Path, state: dict) -> None:
        save(where, state)
        if len(state["history"]) == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit, "save_checkpoint", save_and_stop)
        try:
            stage1.train_fold(job, overwrite=False)
        except KeyboardInterrupt:
            return directory
    raise AssertionError("the run was not stopped")


def resumes_exactly(config, monkeypatch) -> Path:
    """Assert that a killed and continued run writes the bytes of one that was never stopped."""
    whole = train_tiny(config, "whole")
    train_tiny(config, "killed", stop_after=2, monkeypatch=monkeypatch)
    killed = train_tiny(config, "killed")
    heads = sorted(path.name for path in whole.glob("head*.safetensors"))  # several with branches
    assert heads
    for name in ("weights.safetensors", *heads, "oof.npz"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    return whole


def random_batch(count: int = 8, classes: int = 6, seed: int = 0) -> tuple:
    """Images [N, 3, 16, 16] and labels [N] that hold every class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return images, torch.arange(count) % classes
