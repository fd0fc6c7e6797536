"""What holds for every network and second stream: mixed precision, two processes."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from src.artifacts.files import read_json
from src.artifacts.predictions import load_predictions
from src.auxiliaries import build_auxiliaries
from src.data.dataset import Batch
from src.language.names import captions
from src.language.text import with_text
from src.losses import build_criterion
from src.networks.base import Progress
from src.networks.build import build_network
from src.networks.freeze import freeze
from src.runtime import start
from src.training.loop import Objective
from tests.training_kit import random_batch, tiny_config, tiny_dataset, tiny_text, train_tiny

ROOT = Path(__file__).parents[1]
TWO = {"second_sampler": "class_balanced"}
CLIP = {
    "backbone": "open_clip/ViT-B-32",
    "head": "cosine",
    "kwargs": {
        "embed_dim": 8,
        "vision_cfg": {"layers": 1, "width": 8, "head_width": 8, "patch_size": 8},
        "text_cfg": {"layers": 1, "width": 8, "heads": 1, "context_length": 16},
    },
}
METHODS = {
    "bbn": ({"network": "bbn"}, {"second_sampler": "reversed"}),
    "kt": ({"network": {"name": "kt", "start_epoch": 0}}, {}),
    "mmal": ({"network": {"name": "mmal", "raw_epochs": 0}}, {"mixing": {"mixup": 1.0}}),
    "paco": (
        {"network": "paco"},
        {"second_sampler": "same", "criterion": {"name": "balanced_softmax"}},
    ),
    "ride": (
        {"network": "ride", "head": "cosine"},
        {"criterion": {"name": "ldam"}, "deferred": {"weights": True, "start": 0.5}},
    ),
    "task_separator": ({"network": "task_separator"}, TWO),
    "arcface": (
        {"head": "subcentre", "cosine_scale": 30},
        {"criterion": {"name": "arcface", "power": 0.25}},
    ),
    "gem_neck": ({"pooling": "gem", "neck": {"width": 16, "dropout": 0.1}}, {}),
    "transfg": (
        {
            "backbone": "vit_tiny_patch16_224",
            "kwargs": {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2},
            "network": {"name": "transfg", "stride": 3},
        },
        {},
    ),
    "adaptformer": (
        {
            "backbone": "vit_tiny_patch16_224",
            "kwargs": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
            "network": {"name": "transfg", "stride": 8},
            "tuning": "adaptformer",
        },
        {"ema": 0.9},
    ),
    "semantic_cls": (
        {
            "backbone": "vit_tiny_patch16_224",
            "kwargs": {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2},
            "network": {"name": "transfg", "stride": 3},
        },
        {"auxiliaries": ["frequency", "semantic_cls"]},
    ),
    "fbsd": (
        {"network": {"name": "fbsd", "widths": [16, 32, 16], "diversity_gradient": True}},
        {"mixing": {"manifold": 1.0}},
    ),
    "frequency": ({}, {"auxiliaries": [{"name": "frequency"}]}),
    "manifold_two": ({}, TWO | {"mixing": {"manifold": 1.0}}),
    "frozen": ({}, {"freeze": ["backbone.layer1.*"], "freeze_batchnorm": True}),
    "thawed": (
        {},
        {"freeze": [{"name": "backbone.*", "until": 1}], "resizing": [{"size": 8, "share": 0.5}]},
    ),
    "label embedding": (
        {"head": "label_embedding", "correct_text": True, "head_init": "text"},
        {},
    ),
    "clip": (CLIP | {"network": "clip"}, {"mixing": {"manifold": 1.0}}),
    "clip_captions": (
        CLIP | {"network": {"name": "clip", "tuning": "contrastive"}},
        {"micro_batch": 2},
    ),
    "blur": ({"anti_alias": True}, {"criterion": {"name": "seesaw"}}),
}

OPTIONAL = {"clip", "clip_captions"} if find_spec("open_clip") is None else set()
HERE = [name for name in METHODS if name not in OPTIONAL]


@pytest.mark.parametrize("name", METHODS)
def test_every_weight_learns_in_mixed_precision(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name not in HERE:
        pytest.skip("open_clip is not installed")
    config = tiny_config(*METHODS[name], text=tiny_text())
    torch.manual_seed(0)
    data = tiny_dataset()
    parts = (config.model, config.train)
    data = with_text(data, config, parts, start("fp32"))
    classes = data.classes_of(data.images)
    network, _ = build_network(config.model, classes)
    if config.model.network.captions:
        network.begin(None, captions(config, data.classes))
    auxiliaries = build_auxiliaries(config.train.auxiliaries, network, classes)
    criterion = build_criterion(config, classes)
    freeze(network, config.train.frozen, config.train.freeze_batchnorm)
    objective = Objective(network, criterion, auxiliaries).train()
    others, labels = random_batch(seed=1)
    batch = Batch(*random_batch(), rows=torch.arange(8), other=Batch(others, labels.flip(0)))
    with torch.autocast("cpu", torch.bfloat16):
        terms = objective(batch, Progress(0, 0, 0.25, 2))
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    grads = {n: p.grad for n, p in objective.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() for g in grads.values())
    assert any(g.any() for g in grads.values())


@pytest.mark.slow
def test_two_processes_train_every_network_together(tmp_path, monkeypatch):
    """One launch trains them all; every held-out image is there once."""
    monkeypatch.chdir(tmp_path)
    data, _ = tiny_dataset(), tiny_text()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", __file__]
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(launch, capture_output=True, text=True, env=os.environ | paths)
    assert found.returncode == 0, found.stderr
    for name in HERE:
        directory = Path("runs/tiny") / name / "stage1" / "fold0"
        assert read_json(directory / "manifest.json")["processes"] == 2, name
        part = load_predictions(directory / "oof.npz", data.num_classes)
        assert part.image_id.tolist() == data.held_out(0)["image_id"].tolist(), name


def main() -> None:
    """What each of the two processes runs."""
    for name in HERE:
        model, train = METHODS[name]
        config = tiny_config(model, train | {"epochs": 2}, text={"encoder": {"name": "npz"}})
        train_tiny(config, name)


if __name__ == "__main__":
    main()
