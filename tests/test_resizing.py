"""Training images grow with the epochs; evaluation's size, and all chance, stay as they are."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import src.rebalance.features as features
import src.training.loop as loop_module
import src.training.stage1 as stage1_module
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, write_json
from src.artifacts.work import MANIFEST, RUNS
from src.config.augment import Augment
from src.config.read import with_values
from src.config.training import Train
from src.data.augment import TrainTransform
from src.data.dataset import Epochs, train_loader
from src.data.resizing import ResizingTransform, check_augment, training_transform
from src.data.shift import moves
from src.data.transforms import Preprocessing
from src.errors import UserError
from src.networks.weights import load_network
from src.rebalance.stage2 import stage2
from src.runtime import start
from src.training.fold import Fold
from src.training.held_out import evaluate
from src.training.job import build_trainer
from tests.training_kit import (
    DATASET,
    SIZE,
    resumes_exactly,
    tiny_config,
    tiny_dataset,
    train_tiny,
)

PREP = Preprocessing(16, 0.875, "bilinear", (0.5,) * 3, (0.5,) * 3)
STEPS = [{"size": 8, "share": 0.25}, {"size": 12, "share": 0.5}]
PADDED = {"crop": "padded", "color_jitter": 0}
VIT = {
    "backbone": "vit_tiny_patch16_224",
    "kwargs": {"patch_size": 4, "depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": SIZE},
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny_dataset()


def sizes(steps, epochs, **train) -> list[int | None]:
    found = Train(epochs=epochs, resizing=steps, warmup_epochs=0, **train)
    return [found.resized(epoch) for epoch in range(epochs)]


# ---- which epoch has which size ----------------------------------------------------------------


@pytest.mark.parametrize(
    "steps, epochs, expected",
    [
        ([], 2, [None, None]),
        ([(8, 0.5)], 2, [8, None]),
        ([(8, 0.5)], 3, [8, 8, None]),  # 1.5 epochs are 2
        ([(8, 0.5)], 5, [8, 8, 8, None, None]),  # 2.5 are 3, not the even 2
        ([(8, 0.25), (12, 0.5)], 4, [8, 12, 12, None]),
        ([(8, 0.1), (12, 0.2), (8, 0.4)], 10, [8, 12, 12, 8, 8, 8, 8, None, None, None]),
        ([(20, 0.34)], 3, [20, None, None]),
        ([(12, 1.0)], 3, [12, 12, 12]),  # below evaluation's size all along
        ([(8, 0.5), (12, 0.5)], 4, [8, 8, 12, 12]),
    ],
)
def test_sizes_by_hand(steps, epochs, expected):
    assert sizes([{"size": s, "share": share} for s, share in steps], epochs) == expected


@pytest.mark.parametrize(
    "steps, epochs, says",
    [
        ([(8, 0.1)], 4, "a share of 0.1 of 4 epochs is none, so no image would have 8 pixels"),
        ([(8, 0.5), (12, 0.05)], 4, "a share of 0.05 of 4 epochs is none"),
        ([(8, 0.9)], 2, "shares of 0.9 take all 2 epochs"),
        ([(8, 0.9), (12, 0.9)], 4, "the shares add up to 1.8, above 1"),
        ([(4, 0.5)], 4, "train.resizing.0.size"),
        ([(8, 1.1)], 4, "train.resizing.0.share"),
    ],
)
def test_steps_without_epochs_are_refused(steps, epochs, says):
    steps = [{"size": s, "share": share} for s, share in steps]
    with pytest.raises(UserError) as error:
        tiny_config(train={"resizing": steps, "epochs": epochs})
    assert says in str(error.value)


def test_the_device_keeps_one_size():
    changes = {"resizing": STEPS, "epochs": 4, "augment": PADDED}
    config = tiny_config(train=changes)
    with pytest.raises(ValueError, match="data.cache: device keeps images of one size"):
        type(config)(**config.model_dump() | {"data": {"root": "x", "cache": "device"}})


# ---- what the images are -----------------------------------------------------------------------


def transform(augment: dict, steps=STEPS, seed=3):
    train = Train(epochs=4, resizing=steps, augment=Augment(**augment), warmup_epochs=0)
    return training_transform(PREP, train, seed)


def picture(height=40, width=30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_padded_images_by_hand():
    """The CIFAR recipe at each size, with the random numbers of the position alone."""
    image, augment = picture(40, 40), Augment(**PADDED)
    for epoch, size in enumerate([8, 12, 12, 16]):
        small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        pad = size // 8
        top, left, mirror, _ = moves(3, epoch, 5, 1, size, augment)[0]
        padded = np.pad(small, ((pad, pad), (pad, pad), (0, 0)))
        wanted = padded[top : top + size, left : left + size]
        wanted = wanted[:, ::-1] if mirror else wanted
        assert np.array_equal(transform(PADDED)(image, (epoch, 5)), wanted)


@pytest.mark.parametrize("crop", ["random_resized", "random", "padded", "none"])
def test_every_crop_is_that_of_a_network_of_this_size(crop):
    augment = {"crop": crop, "erase": 0.5, "rotate": 10}
    grown, image = transform(augment), picture()
    for epoch, size in enumerate([8, 12, 12, 16]):
        alone = TrainTransform(replace(PREP, size=size), Augment(**augment), 3)
        for position in range(4):
            found = grown(image, (epoch, position))
            assert found.shape == (size, size, 3)
            assert np.array_equal(found, alone(image, (epoch, position)))


def test_nothing_to_resize_is_the_transform_of_before():
    assert type(transform({}, steps=[])) is TrainTransform
    assert type(transform({})) is ResizingTransform


def test_transforms_of_albumentations_are_tried_at_every_size(tiny):
    fixed = {"name": "CenterCrop", "height": SIZE, "width": SIZE}
    steps = [{"size": 12, "share": 0.5}]
    check_augment(tiny_config(train={"augment": {"extra": [fixed]}}))
    with pytest.raises(UserError, match="CenterCrop"):
        check_augment(tiny_config(train={"augment": {"extra": [fixed]}, "resizing": steps}))


def streams(table, workers: int) -> list[list[torch.Tensor]]:
    epochs = Epochs(lambda epoch: np.random.default_rng(epoch).permutation(len(table)), 8)
    loader = train_loader(table, transform({}), epochs, workers, False)
    found = []
    for epoch in range(4):  # one loader: its workers live on
        epochs.epoch = epoch
        found.append([batch.images.clone() for batch in loader])
    return found


def test_workers_that_live_on_see_the_change_at_the_epoch(tiny):
    table = load_dataset(DATASET).images
    alone, others = streams(table, 0), streams(table, 2)
    for size, one, two in zip([8, 12, 12, 16], alone, others, strict=True):
        assert len(one) == 5
        for a, b in zip(one, two, strict=True):
            assert a.shape == (8, 3, size, size) and torch.equal(a, b)


# ---- training ----------------------------------------------------------------------------------


def seen(monkeypatch) -> list[tuple[int, int, int]]:
    """Epoch, height and width of the images of every step."""
    found = []
    forward = loop_module.Objective.forward

    def objective(self, batch, progress):
        found.append((progress.epoch, *batch.images.shape[2:]))
        return forward(self, batch, progress)

    monkeypatch.setattr(loop_module.Objective, "forward", objective)
    return found


def test_training_sees_the_sizes_and_evaluation_its_own(tiny, monkeypatch):
    found = seen(monkeypatch)
    config = tiny_config(train={"resizing": STEPS, "epochs": 4})
    directory = train_tiny(config, "exp")
    assert set(found) == {(0, 8, 8), (1, 12, 12), (2, 12, 12), (3, 16, 16)}
    network, prep = load_network(directory / "weights.safetensors", tiny)
    assert prep.size == SIZE
    shapes = []
    network.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[2:])))
    job = Fold(config, tiny, 0, directory, start("fp32"))
    evaluate(job, network, build_trainer(job)[0].prep)
    assert set(shapes) == {(SIZE, SIZE)}


def test_the_first_steps_are_those_of_a_training_at_their_size(tiny):
    """And the second size's begin where they end: nothing but the images' size is different."""
    small = {"image_size": 8, "crop_pct": 0.875}
    states = []
    for model, train in (({}, {"resizing": [{"size": 8, "share": 0.5}]}), (small, {})):
        config = tiny_config(model, {"epochs": 4} | train)
        job = Fold(config, tiny, 0, RUNS / DATASET / "x" / "stage1" / "fold0", start("fp32"))
        trainer, loader, epochs = build_trainer(job)
        for epoch in range(3):
            epochs.epoch = epoch
            trainer.train_epoch(loader, epoch)
            states.append({k: v.clone() for k, v in trainer.network.state_dict().items()})
    grown, alone = states[:3], states[3:]
    for epoch, equal in enumerate([True, True, False]):
        assert equal == all(torch.equal(v, alone[epoch][k]) for k, v in grown[epoch].items())


@pytest.mark.parametrize(
    "train",
    [
        {"resizing": [{"size": 8, "share": 0.67}]},  # killed at the change
        {"resizing": [{"size": 8, "share": 0.34}, {"size": 12, "share": 0.34}], "ema": 0.9},
        {"resizing": [{"size": 8, "share": 0.34}], "mixing": {"mixup": 0.5, "cutmix": 1.0}},
    ],
    ids=["at the change", "two changes", "mixing"],
)
def test_it_resumes_exactly(train, tiny, monkeypatch):
    resumes_exactly(tiny_config(train=train), monkeypatch)


def test_views_of_stage_2_have_the_size_of_evaluation(tiny, monkeypatch):
    found = []
    run = features.run_network

    def watched(network, *args, **kwargs):
        hook = network.register_forward_pre_hook(
            lambda _, inputs: found.append(tuple(inputs[0].shape[2:]))
        )
        try:
            return run(network, *args, **kwargs)
        finally:
            hook.remove()

    monkeypatch.setattr(features, "run_network", watched)
    config = tiny_config(train={"resizing": [{"size": 8, "share": 0.5}], "epochs": 2})
    heads = {"stage2": [{"head": "crt", "views": 1, "epochs": 1}]}
    config = with_values(config, heads, "test")
    for fold in (0, 1):
        directory = RUNS / DATASET / "exp" / "stage1" / f"fold{fold}"
        stage1_module.train_fold(Fold(config, tiny, fold, directory, start("fp32")), False)
    stage2(config, "exp", False)
    assert len(found) >= 4 and set(found) == {(SIZE, SIZE)}


# ---- networks that take one size ---------------------------------------------------------------


def built(model: dict, tiny):
    config = tiny_config(model, {"resizing": [{"size": 8, "share": 0.5}]})
    return build_trainer(Fold(config, tiny, 0, RUNS / DATASET / "exp", start("fp32")))


def test_a_network_of_one_size_is_refused_before_any_image_is_read(tiny, monkeypatch):
    monkeypatch.setattr("src.data.dataset.read_image", lambda path: pytest.fail("read an image"))
    with pytest.raises(UserError) as error:
        built(VIT, tiny)
    assert "train.resizing: vit_tiny_patch16_224" in str(error.value)
    assert "8 x 8 pixels after it was made for 16" in str(error.value)
    assert "dynamic_img_size=true" in str(error.value)
    built(VIT | {"kwargs": VIT["kwargs"] | {"dynamic_img_size": True}}, tiny)


def test_a_network_that_could_not_be_made_for_a_size_says_why(tiny):
    config = tiny_config(
        {"network": "fbsd", "backbone": "resnet18", "image_size": 256},
        {"resizing": [{"size": 128, "share": 0.34}, {"size": 160, "share": 0.34}]},
    )
    with pytest.raises(UserError) as error:
        build_trainer(Fold(config, tiny, 0, RUNS / DATASET / "exp", start("fp32")))
    assert "train.resizing, 160 pixels: " in str(error.value)
    assert "theirs are [20, 10, 5] pixels high" in str(error.value)


@pytest.mark.parametrize("name, reason", [("mmal", "windows"), ("transfg", "position embedding")])
def test_networks_whose_parts_are_made_for_one_size_are_refused(name, reason):
    """Evaluation may work at another size and training fail, or look at wrong places, later on."""
    with pytest.raises(UserError, match=f"train.resizing does not go with .*{name}: its {reason}"):
        tiny_config({"network": name}, {"resizing": [{"size": 8, "share": 0.5}]})


def test_a_run_from_before_this_key_is_finished_already(tiny, capsys):
    directory = train_tiny(tiny_config(), "old")
    manifest = read_json(directory / MANIFEST)
    del manifest["settings"]["train"]["resizing"]
    write_json(directory / MANIFEST, manifest)
    train_tiny(tiny_config(), "old")
    assert "finished already, skipped" in capsys.readouterr().out
    with pytest.raises(UserError, match="train.resizing"):
        train_tiny(tiny_config(train={"resizing": [{"size": 8, "share": 0.5}]}), "old")
