"""Images brought to the network's size, against cv2 and numpy by hand."""

import re

import cv2
import numpy as np
import pytest

from src.config.augment import Augment
from src.config.predict import TTA
from src.config.read import parse_config
from src.data.augment import TrainTransform
from src.data.transforms import (
    EvalTransform,
    Preprocessing,
    View,
    preprocessing_from,
)
from src.errors import UserError
from src.inference.views import tta_views

HALF = ((0.5,) * 3, (0.5,) * 3)
EXACT = Preprocessing(14, 0.7, "bilinear", *HALF, resize="exact")  # 20 x 20, crop 14
ALONE = {"hflip": False, "color_jitter": 0}


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def places(side: int) -> np.ndarray:
    """[side, side, 3]: each pixel holds its row and column, and 255 where there is an image."""
    y, x = np.mgrid[:side, :side].astype(np.uint8)
    return np.stack([y, x, np.full_like(x, 255)], 2)


@pytest.mark.parametrize(
    ("height", "width", "how"),
    [(90, 50, cv2.INTER_AREA), (21, 300, cv2.INTER_AREA), (9, 12, cv2.INTER_LINEAR)],
)
def test_exact_squeezes_the_whole_image_and_crops_its_centre(height, width, how):
    image = photo(height, width)
    squeezed = cv2.resize(image, (20, 20), interpolation=how)
    np.testing.assert_array_equal(EvalTransform(EXACT)(image), squeezed[3:17, 3:17])


def test_the_published_sizes_come_out():
    for side, crop_pct in ((600, 448 / 600), (600, 0.7467), (550, 448 / 550), (448, 1.0)):
        for resize, expected in (("exact", (side, side)), ("short_side", (side, 2 * side))):
            prep = Preprocessing(448, crop_pct, "bilinear", *HALF, resize=resize)
            assert prep.resized(photo(30, 60)).shape[:2] == expected


def test_crop_pct_one_leaves_nothing_out_of_an_exact_image():
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 50:] = 200
    prep = Preprocessing(10, 1.0, "bilinear", *HALF, resize="exact")
    for transform in (EvalTransform(prep), TrainTransform(prep, Augment(crop="none", **ALONE), 0)):
        found = transform(image, (0, 0))
        assert found.shape == (10, 10, 3) and not found[:, :5].any() and (found[:, 5:] == 200).all()


def test_views_of_an_exact_image_look_where_they_say():
    """Of 20 pixels, and of 30 with scale 1.5; scale 0.5 cannot go below the crop."""
    image = photo(90, 50)
    views = tta_views(TTA(flip=True, crops=5, scales=(1.0, 1.5, 0.5)))
    assert len(views) == 30
    for view in views:
        side = {1.0: 20, 1.5: 30, 0.5: 14}[view.scale]
        whole = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        top, left = (round((side - 14) * c) for c in view.corner)
        expected = whole[top : top + 14, left : left + 14]
        expected = expected[:, ::-1] if view.flip else expected
        np.testing.assert_array_equal(EvalTransform(EXACT, view)(image), expected)
    corners = {EvalTransform(EXACT, View(corner=(y, x)))(places(20))[0, 0, :2].tobytes()
               for y in (0, 1) for x in (0, 1)}  # fmt: skip
    assert corners == {bytes(c) for c in ((0, 0), (0, 6), (6, 0), (6, 6))}


def test_no_chance_is_evaluation():
    image = photo(90, 50)
    for resize in ("exact", "short_side"):
        prep = Preprocessing(14, 0.7, "bicubic", *HALF, resize=resize)
        found = TrainTransform(prep, Augment(crop="none", **ALONE), 0)(image, (3, 4))
        np.testing.assert_array_equal(found, EvalTransform(prep)(image))


@pytest.mark.parametrize("padding", [0, 2])
def test_a_random_crop_is_equally_often_at_every_place(padding):
    """Places 0 … 6 each way without padding, 0 … 10 with 2 pixels of black around."""
    transform = TrainTransform(EXACT, Augment(crop="random", padding=padding, **ALONE), 0)
    padded = np.pad(places(20), [(padding, padding)] * 2 + [(0, 0)])
    ways, draws = 20 + 2 * padding - 14 + 1, 6000
    counts = np.zeros((ways, ways), int)
    for i in range(draws):
        found = transform(places(20), (i % 7, i))
        y, x = found[padding, padding, :2].tolist()  # never black: at most `padding` of it is
        counts[y, x] += 1
        np.testing.assert_array_equal(found, padded[y : y + 14, x : x + 14])
    expected = draws / counts.size
    chi = ((counts - expected) ** 2 / expected).sum()  # mean: degrees of freedom n, sd: sqrt(2 n)
    assert chi < counts.size + 5 * np.sqrt(2 * counts.size)


def test_a_random_crop_is_of_the_image_resized_as_in_evaluation():
    image = photo(90, 50)
    squeezed = cv2.resize(image, (20, 20), interpolation=cv2.INTER_AREA)
    windows = {squeezed[y : y + 14, x : x + 14].tobytes() for y in range(7) for x in range(7)}
    transform = TrainTransform(EXACT, Augment(crop="random", **ALONE), 0)
    found = {transform(image, (0, i)).tobytes() for i in range(40)}
    assert found <= windows and len(found) > 15
    mirrored = TrainTransform(EXACT, Augment(crop="random", color_jitter=0), 0)
    flips = [np.ascontiguousarray(mirrored(image, (0, i))[:, ::-1]).tobytes() in windows
             for i in range(200)]  # fmt: skip
    assert 70 < sum(flips) < 130


def jittered(image: np.ndarray, draws: int = 200, **parts: float) -> np.ndarray:
    """[draws, 14, 14, 3]"""
    off = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0)
    augment = Augment(crop="none", hflip=False, color_jitter=off | {"p": 1} | parts)
    transform = TrainTransform(EXACT, augment, 0)
    return np.stack([transform(image, (0, i)) for i in range(draws)])


def test_each_colour_changes_by_itself():
    flat = np.full((20, 20, 3), 100, np.uint8)
    bright = jittered(flat, brightness=0.2)
    assert (bright.min(), bright.max()) == (80, 120) or 80 <= bright.min() < 84
    assert bright.max() <= 120 and bright.max() > 116
    assert (bright == bright[:, :1, :1, :1]).all()
    for part in ("contrast", "saturation", "hue"):  # of one grey there is none of them
        np.testing.assert_array_equal(np.abs(jittered(flat, **{part: 0.4}) - 100.0) <= 1, True)
    colours = np.zeros((20, 20, 3), np.uint8) + np.array([200, 100, 60], np.uint8)
    assert np.ptp(jittered(colours, saturation=0.4)[:, 0, 0].astype(int), 0).min() > 5
    hues = jittered(colours, hue=0.4)[:, 0, 0].astype(int)
    assert (hues.max(1) - hues.min(1) > 130).all() and (hues.argmax(1) > 0).any()


def test_a_share_of_the_images_keeps_its_colours():
    flat = np.full((20, 20, 3), 100, np.uint8)
    for p, low, high in ((0.8, 20, 62), (1, 0, 10), (0, 200, 200)):
        same = (jittered(flat, brightness=0.4, p=p) == 100).all((1, 2, 3)).sum()
        assert low <= same <= high


def test_a_number_is_short_for_three_colours_alike():
    assert Augment(color_jitter=0.4) == Augment(
        color_jitter={"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
    )
    assert not Augment(color_jitter=0).color_jitter.on and Augment().color_jitter.on


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        ({"padding": 8}, "crop is random_resized; set crop: random or remove padding"),
        ({"crop": "random", "padding": -1}, "greater than or equal to 0"),
        ({"color_jitter": {"brightnes": 0.2}}, "did you mean `brightness`?"),
        ({"color_jitter": {"hue": 0.6}}, "less than or equal to 0.5"),
        ({"color_jitter": True}, "`train.augment.color_jitter`: found True"),
        ({"color_jitter": 3}, "`train.augment.color_jitter.brightness`: found 3"),
        ({"crop": "randon"}, "did you mean 'random'?"),
    ],
)
def test_a_mistake_is_named(augment, says):
    with pytest.raises(UserError, match=re.escape(says)):
        parse_config({"train": {"augment": augment}})


def test_preprocessing_of_earlier_weights_keeps_its_meaning():
    tree = {"size": 14, "crop_pct": 0.7, "interpolation": "bilinear", "mean": [0.5] * 3,
            "std": [0.5] * 3}  # fmt: skip
    assert preprocessing_from(tree) == Preprocessing(14, 0.7, "bilinear", *HALF)
    assert preprocessing_from(tree).resize == "short_side"
    assert preprocessing_from(EXACT.as_dict()) == EXACT
    for wrong in ("exactly", None, ["exact"]):
        with pytest.raises((ValueError, TypeError)):
            preprocessing_from(tree | {"resize": wrong})
