"""Batches: the same bytes for any number of workers and processes, and another epoch differs."""

import numpy as np
import pytest
import torch

from src.artifacts.dataset import load_dataset
from src.config.augment import Augment
from src.data.augment import TrainTransform
from src.data.dataset import Epochs, ImageTable, collate, eval_loader, train_loader
from src.data.samplers import epoch_order
from src.data.transforms import EvalTransform, Preprocessing, View
from src.errors import UserError

PREP = Preprocessing(16, 1.0, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
STRONG = Augment(
    hflip=True, vflip=True, rotate=30, color_jitter=0.5, erase=0.5, policy="randaugment",
    extra=[{"name": "OneOf", "transforms": ["GaussNoise", "MotionBlur", "ElasticTransform"]}],
)  # fmt: skip


def batches(table, workers: int, epochs=(0, 1), rank=0, world=1, size=32) -> list[list]:
    """Images of each epoch, as loaded for one process."""
    labels = table["label"].to_numpy()
    sampler = Epochs(lambda e: epoch_order("class_balanced", labels, 10, 0, e), size, rank, world)
    loader = train_loader(table, TrainTransform(PREP, STRONG, 0), sampler, workers, False)
    found = []
    for epoch in epochs:
        sampler.epoch = epoch
        found.append([batch.images.clone() for batch in loader])
    return found


def test_augmentation_is_byte_identical_for_any_number_of_workers(digits):
    table = load_dataset("digits").images[:96]
    alone = batches(table, 0)
    for workers in (2, 4):
        for one, other in zip(alone, batches(table, workers), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(alone[0][0], alone[1][0])


def test_epoch_one_is_the_same_when_epoch_zero_was_never_run(digits):
    table = load_dataset("digits").images[:96]
    both, later = batches(table, 0), batches(table, 0, epochs=(1,))
    assert all(torch.equal(a, b) for a, b in zip(both[1], later[0], strict=True))


def test_the_same_image_drawn_twice_in_an_epoch_is_augmented_differently(digits):
    table = ImageTable(load_dataset("digits").images, TrainTransform(PREP, STRONG, 0))
    one, two = table[(0, 3, 7)][0], table[(0, 4, 7)][0]
    assert not np.array_equal(one, two)


def test_two_processes_see_together_what_one_sees(digits):
    table = load_dataset("digits").images[:96]
    alone = batches(table, 0, epochs=(0,))[0]
    ranks = [batches(table, 0, epochs=(0,), rank=r, world=2)[0] for r in (0, 1)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert torch.equal(whole, torch.cat([first, second]))


def test_an_epoch_smaller_than_a_batch_is_one_batch():
    sampler = Epochs(lambda e: np.arange(5), 64)
    assert len(sampler) == 1 and [len(b) for b in sampler] == [5]


def test_batches_are_channels_last_without_a_copy():
    batch = collate([(np.zeros((8, 8, 3), np.uint8), 1, 0)] * 4)
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_normalise_is_the_textbook_formula():
    image = torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)  # 0.2 in 0..1
    found = PREP.normalise(image)[0, :, 0, 0]
    expected = [(0.2 - m) / s for m, s in zip(PREP.mean, PREP.std, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_views_crop_where_they_say():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :20] = 1  # left half
    image[:10, :, 1] = 7  # top half
    prep = Preprocessing(10, 0.5, "bilinear", (0, 0, 0), (1, 1, 1))  # resized to 20 x 40, untouched

    def view(**options):
        return EvalTransform(prep, View(**options))(image)

    assert view(corner=(0, 0))[..., 0].min() == 1 and view(corner=(0, 1))[..., 0].max() == 0
    assert view(corner=(0, 0))[..., 1].min() == 7 and view(corner=(1, 0))[..., 1].max() == 1
    centre = view()
    assert (
        centre.shape == (10, 10, 3) and centre[:, :5, 0].min() == 1 and centre[:, 5:, 0].max() == 0
    )
    np.testing.assert_array_equal(view(flip=True), centre[:, ::-1])


@pytest.mark.parametrize("shape", [(7, 300), (300, 7), (16, 16), (1, 1)])
@pytest.mark.parametrize("crop", ["random_resized", "padded", "none"])
def test_any_shape_of_image_becomes_the_networks_size(shape, crop):
    image = np.full((*shape, 3), 9, np.uint8)
    prep = Preprocessing(16, 0.875, "bicubic", (0, 0, 0), (1, 1, 1))
    assert EvalTransform(prep)(image).shape == (16, 16, 3)
    assert TrainTransform(prep, Augment(crop=crop), 0)(image, (0, 0)).shape == (16, 16, 3)


def test_wrong_arguments_of_albumentations_are_errors(monkeypatch):
    import src.data.augment as augment

    monkeypatch.setattr(
        augment, "_augmentations", lambda *_: [augment.A.HorizontalFlip(probability=1)]
    )
    with pytest.raises(UserError, match="albumentations does not take it"):
        TrainTransform(PREP, Augment(), 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_image_is_one_sentence_and_a_bug_keeps_its_traceback(digits, workers):
    table = load_dataset("digits").images[:4].copy()
    table.loc[1, "path"] = "data/gone.png"
    draws = [(0, i, i) for i in range(4)]
    with pytest.raises(UserError, match="^data/gone.png: the image file is missing. Put it back, "):
        list(eval_loader(table, EvalTransform(PREP), draws, 2, workers, False))
    sampler = Epochs(lambda epoch: np.arange(4), 4)
    with pytest.raises(UserError, match="^data/gone.png: "):
        list(train_loader(table, TrainTransform(PREP, STRONG, 0), sampler, workers, False))

    def buggy(image, draw):
        return image / {}[draw]

    with pytest.raises(KeyError) as found:
        list(eval_loader(table[:1], buggy, draws[:1], 2, workers, False))
    assert ("in buggy" in str(found.value)) == (workers > 0)  # where from, that a worker must say
