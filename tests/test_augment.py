"""Policies and transforms by name: what they do to an image, that a draw decides all of it, and
that a mistake is told before anything is loaded."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from src.config.augment import Augment
from src.config.read import parse_config
from src.data.augment import TrainTransform
from src.data.transforms import EvalTransform, Preprocessing
from src.errors import UserError
from src.rebalance.stage2 import stage2
from src.training.stage1 import stage1
from src.training.trials import search
from tests.training_kit import DATASET, resumes_exactly, tiny_config, tiny_dataset

SIZE = 24
PREP = Preprocessing(SIZE, 1.0, "bilinear", (1.0, 0.0, 0.0), (0.5,) * 3)  # its mean is pure red
NOTHING_ELSE = {"crop": "none", "hflip": False, "color_jitter": 0}
POLICIES = {
    "randaugment": {"name": "randaugment", "n": 3, "m": 20},
    "trivialaugment": "trivialaugment",
    "imagenet": "autoaugment",
    "cifar10": {"name": "autoaugment", "learned_on": "cifar10"},
    "svhn": {"name": "autoaugment", "learned_on": "svhn"},
}


def photo() -> np.ndarray:
    """Smooth, with no pure red in it."""
    small = np.random.default_rng(0).integers(40, 180, (5, 5, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC))


def drawn(image: np.ndarray, draws: int, seed: int = 0, **augment) -> list[bytes]:
    transform = TrainTransform(PREP, Augment(**NOTHING_ELSE | augment), seed)
    return [transform(image, (i % 3, i)).tobytes() for i in range(draws)]


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_a_function_of_seed_epoch_and_position(name):
    one, again, other = (drawn(photo(), 60, s, policy=POLICIES[name]) for s in (0, 0, 1))
    assert one == again and one != other
    assert len(set(one)) > 20


def test_policies_differ():
    assert len({tuple(drawn(photo(), 30, policy=p)) for p in POLICIES.values()}) == len(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_leaves_the_random_numbers_of_others_alone(name):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    drawn(photo(), 10, policy=POLICIES[name])
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(8)  # nor does it take from them
    assert drawn(photo(), 10, policy=POLICIES[name]) == drawn(photo(), 10, policy=POLICIES[name])


def pil(change) -> bytes:
    return np.asarray(change(Image.fromarray(photo()))).tobytes()


def test_randaugment_draws_one_of_fourteen_operations_at_the_magnitude_asked_for():
    """At m = 30, factors are 1 ± 0.9 and 4 bits are left; those of geometry show red, the mean."""
    colours = {"identity": [pil(lambda i: i)]}
    for kind in ("Brightness", "Color", "Contrast", "Sharpness"):
        enhance = getattr(ImageEnhance, kind)
        both = [pil(lambda i, e=enhance, f=f: e(i).enhance(f)) for f in (0.1, 1.9)]
        colours[kind] = both
    colours["posterise"] = [pil(lambda i: ImageOps.posterize(i, 4))]
    colours["solarise"] = [pil(lambda i: ImageOps.solarize(i, 0))]
    colours["auto-contrast"] = [pil(ImageOps.autocontrast)]
    colours["equalise"] = [pil(ImageOps.equalize)]
    draws = 1400
    found = drawn(photo(), draws, policy={"name": "randaugment", "n": 1, "m": 30})
    counts = {kind: sum(map(found.count, results)) for kind, results in colours.items()}
    assert all(60 < count < 145 for count in counts.values()), counts  # 100 each, sd 9.6
    known = {result for results in colours.values() for result in results}
    moved = [np.frombuffer(f, np.uint8).reshape(SIZE, SIZE, 3) for f in found if f not in known]
    assert all(((m == (255, 0, 0)).all(2)).sum() >= 5 for m in moved)
    assert len({m.tobytes() for m in moved}) == 10  # five of them, two ways each


def test_magnitude_zero_moves_nothing_and_n_is_the_number_of_operations():
    still = drawn(photo(), 60, policy={"name": "randaugment", "n": 1, "m": 0})
    changed = [f for f in set(still) if f != photo().tobytes()]
    assert len(changed) <= 3  # auto-contrast, equalise, and nothing of the others but rounding
    one, five = (len(set(drawn(photo(), 300, policy={"name": "randaugment", "n": n, "m": 15})))
                 for n in (1, 5))  # fmt: skip
    assert one <= 24 and five > 150


def test_trivialaugment_does_one_operation_of_any_magnitude():
    grey = np.full((SIZE, SIZE, 3), 100, np.uint8)
    found = [np.frombuffer(f, np.uint8) for f in drawn(grey, 600, policy="trivialaugment")]
    levels = {int(f[0]) for f in found if np.ptp(f) == 0}
    bright = {int(100 * (1 + sign * 0.99 * m / 30)) for sign in (1, -1) for m in range(31)}
    assert len(levels & bright) > 15 and max(levels) >= 193  # RandAugment: 190


def test_extra_does_what_it_says_after_the_crop_and_before_the_erasing():
    image = photo()
    found = drawn(image, 1, extra=[{"name": "InvertImg", "p": 1}])[0]
    assert found == (255 - image).tobytes()
    extra = [{"name": "InvertImg", "p": 1}, {"name": "Solarize", "threshold_range": [0, 0], "p": 1}]
    assert drawn(image, 1, extra=extra)[0] == image.tobytes()  # both, in this order
    erased = np.frombuffer(drawn(image, 1, extra=["InvertImg"], erase=1)[0], np.uint8)
    assert (erased.reshape(-1, 3) == 0).all(1).any()  # black is not inverted to white
    big = Preprocessing(SIZE, 0.5, "bilinear", *((0.5,) * 3,) * 2)
    augment = Augment(crop="random", color_jitter=0, extra=[{"name": "InvertImg", "p": 1}])
    assert TrainTransform(big, augment, 0)(photo(), (0, 0)).shape == (SIZE, SIZE, 3)


def test_p_of_an_extra_is_a_share_of_the_images():
    same = drawn(photo(), 400, extra=[{"name": "InvertImg", "p": 0.3}]).count(photo().tobytes())
    assert 235 < same < 325


def test_transforms_inside_one_another():
    one_of = {"name": "OneOf", "p": 1, "transforms": [{"name": "InvertImg", "p": 1}, "ToGray"]}
    found = drawn(photo(), 200, extra=[one_of])
    assert len(set(found)) == 2 and 40 < found.count((255 - photo()).tobytes()) < 180
    crop = {"name": "RandomCrop", "height": 12, "width": 12}
    back = {"name": "Resize", "height": SIZE, "width": SIZE}
    drawn(photo(), 2, extra=[{"name": "Sequential", "transforms": [crop, back]}])


def test_advice_of_albumentations_is_no_error():
    with pytest.warns(UserWarning, match="special case of Affine"):
        TrainTransform(PREP, Augment(extra=["ShiftScaleRotate"]), 0)


def test_without_chance_left_all_draws_are_evaluation():
    off = {"policy": "none", "extra": [{"name": "InvertImg", "p": 0}]}
    assert set(drawn(photo(), 5, **off)) == {EvalTransform(PREP)(photo()).tobytes()}


KEY = "train.augment.extra[1]"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"name": "GausNoise"}, f"{KEY}.name: albumentations 2.0.8 has no GausNoise; did you mean "
         "GaussNoise"),
        ({"name": "gaussnoise"}, "did you mean GaussNoise"),
        ({"name": "Compose"}, f"{KEY}.name: albumentations 2.0.8 has no Compose"),
        ({"name": "xyz"}, "see https://explore.albumentations.ai"),
        ({"name": "GaussNoise", "std_rnge": [0, 1]}, f"{KEY}.std_rnge: GaussNoise of "
         "albumentations 2.0.8 has no such argument; did you mean `std_range`?"),
        ({"name": "InvertImg", "zzz": 1}, "no such argument; it takes p"),
        ({"name": "GaussNoise", "std_range": [0.1, 2]}, f"{KEY}.std_range: GaussNoise does not "
         "take it, found [0.1, 2]; Value error, All values in (0.1, 2.0) must be >= 0 and <= 1"),
        ({"name": "GaussNoise", "p": 2}, f"{KEY}.p: GaussNoise does not take it, found 2; Input "
         "should be less than or equal to 1"),
        ({"name": "RandomCrop", "width": 3}, f"{KEY}.height is missing; RandomCrop needs it"),
        ({"name": "OneOf"}, f"{KEY}: OneOf does not take its arguments"),
        ({"name": "RandomScale", "scale_limit": 0.5}, "training wants uint8 [24, 24, 3] back"),
        ({"name": "Normalize", "p": 0.01}, f"{KEY}: Normalize makes float32 [24, 24, 3] of"),
        ({"name": "ToTensorV2"}, "makes torch.uint8 [3, 24, 24] of an image"),
        ({"name": "Mosaic"}, f"{KEY}: Mosaic fails on an image alone"),
        ({"name": "ConstrainedCoarseDropout"}, "UserWarning: Neither valid mask nor bboxes"),
        ({"name": "OneOf", "transforms": 3}, f"{KEY}.transforms: expected a list of transforms"),
        ({"name": "OneOf", "transforms": [{}]}, f"{KEY}.transforms: expected a list of"),
        ({"name": "OneOf", "transforms": ["Blur", {"name": "Blur", "blr_limit": 3}]},
         f"{KEY}.transforms[1].blr_limit: Blur of"),
        ({"name": "OneOf", "transforms": ["Blur", "Normalize"]},
         f"{KEY}.transforms[1]: Normalize makes float32"),
        ({"name": "Sequential", "transforms": ["Blur", "Blrr"]},
         f"{KEY}.transforms[1].name: albumentations 2.0.8 has no Blrr; did you mean Blur"),
    ],
)  # fmt: skip
def test_a_transform_that_cannot_be_is_named_with_the_nearest_right_one(spec, says):
    augment = Augment(extra=["HorizontalFlip", spec])
    with pytest.raises(UserError, match=re.escape(says)):
        TrainTransform(PREP, augment, 0)


def test_a_transform_that_draws_by_itself_is_refused(monkeypatch):
    import src.data.named as named

    class Careless(named.A.ImageOnlyTransform):
        def apply(self, image, **_):
            return image ^ np.random.default_rng().integers(0, 256, image.shape, dtype=np.uint8)

    monkeypatch.setitem(named.KNOWN, "Careless", Careless)
    with pytest.raises(UserError, match="Careless draws by itself, whatever the seed"):
        TrainTransform(PREP, Augment(extra=["Careless"]), 0)


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        ({"policy": "randaugmnt"}, "did you mean 'randaugment'?"),
        ({"policy": {"name": "randaugment", "m": 31}}, "less than or equal to 30"),
        ({"policy": {"name": "trivialaugment", "m": 3}}, "unknown key `train.augment.policy.m`"),
        ({"policy": {"name": "autoaugment", "learned_on": "imagenett"}}, "mean 'imagenet'?"),
        ({"extra": [{"p": 1}]}, "`train.augment.extra.0`: a transform of albumentations has a na"),
        ({"extra": [3]}, "`train.augment.extra.0`: found 3"),
        ({"extra": "GaussNoise"}, "`train.augment.extra`: found 'GaussNoise'"),
    ],
)
def test_a_mistake_in_the_config_is_named(augment, says):
    with pytest.raises(UserError, match=re.escape(says)):
        parse_config({"train": {"augment": augment}})


@pytest.mark.parametrize("script", [stage1, search], ids=["02", "02 --search"])
def test_training_stops_before_anything_is_made(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    config = tiny_config(train={"augment": {"extra": [{"name": "GausNoise"}]}})
    arguments = ([],) if script is stage1 else ()
    with pytest.raises(UserError, match="did you mean GaussNoise"):
        script(config, "x", *arguments, overwrite=False)
    assert not Path("runs/tiny/x").exists()


ALL = {
    "crop": "random", "padding": 3, "vflip": True, "rotate": 10, "erase": 0.3,
    "policy": "trivialaugment",
    "extra": [{"name": "OneOf", "transforms": ["GaussNoise", "GaussianBlur"]}, "Perspective"],
}  # fmt: skip


def test_a_run_that_was_stopped_goes_on_with_the_same_draws(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    model = {"resize": "exact", "crop_pct": 0.8}
    resumes_exactly(tiny_config(model, {"augment": ALL}), monkeypatch)


def test_views_of_stage_2_are_augmented_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    tree = tiny_config(train={"epochs": 2, "augment": ALL}).model_dump()
    config = parse_config(tree | {"stage2": [{"head": "crt", "views": 2, "epochs": 2}]})
    stage1(config, "viewed", ["0"], overwrite=False)
    stage2(config, "viewed", overwrite=False)
    names = {path.name.split("-")[0] for path in tmp_path.glob(
        f"runs/{DATASET}/viewed/stage2/features/fold0/*.npz")}  # fmt: skip
    assert names == {"plain", "view0", "view1"}
    files = sorted(tmp_path.glob(f"runs/{DATASET}/viewed/stage2/features/fold0/*.npz"))
    features = [np.load(path)["features"] for path in files]
    assert not np.array_equal(features[1], features[2])
