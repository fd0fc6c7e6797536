"""`data.cache` changes how fast images come, and not one bit of them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from src.config.augment import Augment
from src.config.data import Data
from src.config.read import parse_config
from src.data import cache
from src.data.augment import TrainTransform
from src.data.dataset import Epochs
from src.data.loader import DeviceLoader, training_loader
from src.data.samplers import epoch_order
from src.data.shift import margin, moves
from src.data.transforms import Preprocessing
from src.errors import UserError
from tests.prepare_kit import photo

CPU = torch.device("cpu")
PREP = Preprocessing(32, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
PADDED = Augment(crop="padded", color_jitter=0)


@pytest.fixture(autouse=True)
def nothing_kept():
    yield
    cache.forget_images()


@pytest.fixture
def table(tmp_path):
    """23 images, some of another size than the network's."""
    paths = [str(tmp_path / f"{i}.png") for i in range(23)]
    for i, path in enumerate(paths):
        photo(i, (32, 32) if i % 3 else (48, 40)).save(path)
    return pd.DataFrame({"path": paths, "label": np.arange(23) % 3})


def batches(table, epoch, *, streams=1, seed=5, augment=PADDED, rank=0, world=1, **data):
    labels = table["label"].to_numpy()

    def rows(stream):
        sampler = ("instance", "class_balanced")[stream]
        return lambda epoch: epoch_order(sampler, labels, 3, seed, epoch, 9, stream=stream)

    second = rows(1) if streams == 2 else None
    epochs = Epochs(rows(0), 8, rank, world, second)
    transform = TrainTransform(PREP, augment, seed)
    loader = training_loader(Data(**{"workers": 0} | data), table, transform, epochs, CPU)
    epochs.epoch = epoch
    return list(loader)


def same(one, two):
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        assert (a.other is None) == (b.other is None)
        if a.other is not None:
            same([a.other], [b.other])
    return True


@pytest.mark.parametrize("where", ["memory", "device"])
@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("flips", [{}, {"vflip": True}, {"hflip": False}])
def test_a_cache_changes_no_byte(table, where, streams, flips):
    augment = PADDED.model_copy(update=flips)
    for epoch in (0, 7):
        plain = batches(table, epoch, streams=streams, augment=augment)
        kept = batches(table, epoch, streams=streams, augment=augment, cache=where)
        assert same(plain, kept)


def test_memory_serves_every_augmentation_and_worker(table):
    augment = Augment(rotate=20)
    plain = batches(table, 1, augment=augment)
    assert same(plain, batches(table, 1, augment=augment, cache="memory"))
    assert same(plain, batches(table, 1, augment=augment, cache="memory", workers=2))


def test_images_are_opened_once(table):
    first = batches(table, 0, cache="memory")
    for path in table["path"]:
        open(path, "wb").close()
    assert same(first, batches(table, 0, cache="memory"))


def test_processes_share_a_batch(table):
    whole = batches(table, 3, cache="device")
    halves = [batches(table, 3, cache="device", rank=rank, world=2) for rank in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))


def test_an_epoch_is_a_function_of_seed_and_epoch_alone(table):
    """What a resumed run rests on: epoch 4 is the same whether or not epochs 0 … 3 came before."""
    epochs = Epochs(lambda e: epoch_order("instance", table["label"].to_numpy(), 3, 5, e), 8)
    loader = DeviceLoader(table, TrainTransform(PREP, PADDED, 5), epochs, CPU, 1)
    seen = []
    for epoch in range(5):
        epochs.epoch = epoch
        seen.append(list(loader))
    assert same(seen[4], batches(table, 4, cache="device"))
    assert not torch.equal(seen[3][0].images, seen[4][0].images)
    assert not torch.equal(batches(table, 4, seed=6, cache="device")[0].images, seen[4][0].images)


def test_moves_are_uniform_and_independent():
    size, count = 32, 40_000
    found = moves(0, 0, 0, count, size, PADDED.model_copy(update={"vflip": True}))
    places = 2 * margin(size) + 1
    for column in (0, 1):
        share = np.bincount(found[:, column], minlength=places) / count
        assert len(share) == places and np.abs(share - 1 / places).max() < 0.006
    assert np.abs(found[:, 2:].mean(0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(found.T) - np.eye(4)).max() < 0.02
    for column in range(4):  # nor do neighbours know of each other
        assert abs(np.corrcoef(found[:-1, column], found[1:, column])[0, 1]) < 0.02


def test_moves_depend_on_the_position_and_not_on_the_batch():
    whole = moves(3, 2, 0, 50, 32, PADDED)
    parts = [moves(3, 2, start, 10, 32, PADDED) for start in range(0, 50, 10)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, moves(3, 3, 0, 50, 32, PADDED))
    assert not np.array_equal(whole, moves(4, 2, 0, 50, 32, PADDED))


def test_images_are_really_shifted_and_mirrored(tmp_path):
    """One bright pixel shows where the image went."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[10, 20] = 255
    path = str(tmp_path / "dot.png")
    Image.fromarray(image).save(path)
    table = pd.DataFrame({"path": [path] * 400, "label": 0})
    epochs = Epochs(lambda epoch: np.arange(400), 400)
    loader = DeviceLoader(table, TrainTransform(PREP, PADDED, 0), epochs, CPU, 1)
    dots = np.argwhere(next(iter(loader)).images[:, 0].numpy() == 255)
    assert len(dots) == 400
    mirrored = 31 - 20
    rows, columns = Counter(dots[:, 1]), Counter(dots[:, 2])
    assert set(rows) == set(range(6, 15))
    assert set(columns) == set(range(16, 25)) | set(range(mirrored - 4, mirrored + 5))
    assert 160 < sum(n for c, n in columns.items() if c < 16) < 240


@pytest.mark.parametrize("where", ["memory", "device"])
def test_a_cache_that_does_not_fit_is_refused(table, where, monkeypatch):
    monkeypatch.setattr(cache, "free_memory", lambda: 100_000.0)
    monkeypatch.setattr("src.data.loader.free_memory", lambda: 100_000.0)
    with pytest.raises(UserError, match=f"data.cache={where}: 23 .*half of the .*data.cache=none"):
        batches(table, 0, cache=where)


def test_device_refuses_what_it_cannot_do():
    with pytest.raises(UserError, match="crop random_resized, color_jitter; use data.cache: mem"):
        parse_config({"data": {"cache": "device"}})
    augment = {"crop": "padded", "color_jitter": 0}
    parse_config({"data": {"cache": "device"}, "train": {"augment": augment}})
    for others, named in (
        ({"erase": 0.5}, "erase"),
        ({"rotate": 5, "policy": "trivialaugment"}, "rotate, policy"),
        ({"extra": ["GaussNoise"]}, "extra"),
    ):
        with pytest.raises(UserError, match=f"found {named}; use"):
            parse_config({"data": {"cache": "device"}, "train": {"augment": augment | others}})


def test_a_broken_image_is_named(table):
    open(table["path"][3], "wb").close()
    for where in ("memory", "device"):
        with pytest.raises(UserError, match="3.png: not a readable image"):
            batches(table, 0, cache=where)


def test_moves_leave_the_preprocessing_alone(table):
    """The network's own crop_pct is for evaluation: `padded` takes the whole image."""
    prep = replace(PREP, crop_pct=0.5)
    one, two = (TrainTransform(p, PADDED, 0) for p in (PREP, prep))
    image = np.asarray(photo(1, (32, 32)))
    assert np.array_equal(one(image, (0, 0)), two(image, (0, 0)))
