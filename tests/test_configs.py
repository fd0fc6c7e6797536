"""Configs of the source documents: each says where its settings are from, loads, and trains.

A line in CONFIGS is all that a new one needs: what makes it small enough for tiny images.
"""

from pathlib import Path

import pytest

from src.artifacts.files import read_json, read_table
from src.artifacts.predictions import load_predictions
from src.artifacts.work import RUNS
from src.config.read import load_config
from src.posthoc.calibrate import posthoc
from src.rebalance.stage2 import stage2
from src.training.stage1 import stage1
from tests.training_kit import DATASET, SIZE, tiny_dataset, tiny_text, train_tiny

CONFIGS_DIR = Path(__file__).parents[1] / "configs"
CNN = ["model.backbone=cifar_resnet20"]
VIT = [
    "model.backbone=vit_tiny_patch16_224",
    "model.kwargs={patch_size: 4, embed_dim: 16, depth: 3, num_heads: 2}",
]
BODY = "model.kwargs={patch_size: 4, embed_dim: 16, depth: 3, num_heads: 2, img_size: 16}"
LIFT = [
    "model.backbone=vit_base_patch16_clip_quickgelu_224", BODY,
    "model.head_init=class_means",  # the text encoder has a test of its own
]  # fmt: skip
CLIP = [
    "model.backbone=open_clip/ViT-B-32",
    "model.kwargs={embed_dim: 8, vision_cfg: {layers: 1, width: 8, head_width: 8, patch_size: 8}, "
    "text_cfg: {layers: 1, width: 8, heads: 1, context_length: 16}}",
]
CONFIGS = {  # name → what stands in for its backbone; image_size too where 16 pixels are too few
    "food_transfg": [*VIT, "model.network.stride=3"],
    "food_multitask": [*VIT, "model.network.stride=3"],
    "food_semantic_cls": [*VIT, "model.network.stride=3", "text.encoder=npz"],
    "food_clip": CLIP,
    "cub_mmal": CNN,
    "aircraft_mmal": CNN,
    "inat_bbn": CNN,
    "imagenet_lt_decoupling": CNN,
    "cub_fbsd": [*CNN, "model.network.widths=[16,32,16]"],
    "aircraft_fbsd": [*CNN, "model.network.widths=[16,32,16]"],
    "lift_cifar100_lt": LIFT,
    "lift_places_lt": LIFT,
    "lift_inat2018": LIFT,
    "dinov3_adaptformer": ["model.backbone=vit_small_patch16_dinov3", BODY],
    "siglip_lora": ["model.backbone=vit_base_patch16_siglip_224", BODY],
}


def needs_package(overrides: list[str]) -> None:
    if any("open_clip/" in text for text in overrides):
        pytest.importorskip("open_clip")


TINY = [
    f"data.root={DATASET}", f"data.name={DATASET}", "data.workers=0", "data.cache=none",
    "model.pretrained=false", "model.kwargs={}", f"model.image_size={SIZE}",
    "train.epochs=2", "train.warmup_epochs=0", "train.batch_size=8", "train.micro_batch=null",
    "train.precision=fp32", "train.eval_every=1",
]  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_source_config_trains_on_tiny_images(name, tmp_path, monkeypatch):
    """Steps of two epochs; everything that the overrides leave alone is as shipped."""
    needs_package(CONFIGS[name])
    monkeypatch.chdir(tmp_path)
    data, _ = tiny_dataset(), tiny_text()
    config = load_config(CONFIGS_DIR / f"{name}.yaml", [*TINY, *CONFIGS[name]])
    directory = train_tiny(config, name)
    history = read_table(directory / "metrics.csv", ["loss"])
    assert len(history) == 2 and history["loss"].notna().all()
    found = load_predictions(directory / "oof.npz", data.num_classes)
    assert found.image_id.tolist() == data.held_out(0)["image_id"].tolist()


def test_every_head_of_decoupling_trains_and_tau_is_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    name = "imagenet_lt_decoupling"
    config = load_config(CONFIGS_DIR / f"{name}.yaml", [*TINY, *CNN])
    stage1(config, name, [], overwrite=False)
    found = stage2(config, name, overwrite=False)
    assert found["classifier"].tolist() == 2 * ["crt", "lws", "ncm"]
    posthoc(config, name)
    tried = read_json(RUNS / DATASET / name / "posthoc" / "posthoc.json")["tried"]
    assert {trial["step"] for trial in tried} == {"tau_norm"}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_source_config_says_where_it_is_from_and_what_data_it_expects(name):
    """In the comment that it starts with."""
    lines = (CONFIGS_DIR / f"{name}.yaml").read_text().splitlines()
    comment = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    head = " ".join(lines[:comment])
    config = load_config(CONFIGS_DIR / f"{name}.yaml")
    assert head.startswith("# Source (") and config.data.root in head
