"""What training does to images. With named.py, the only file that knows albumentations, which is
slow to import: import this where images are augmented.

Every random choice comes from (seed, epoch, draw), so the stream is the same for any number of
workers and processes.
"""

import warnings
from dataclasses import replace

import cv2
import numpy as np

from src.config.augment import Augment
from src.data.named import A, named_transforms
from src.data.policies import SeededTransform, build_policy
from src.data.shift import moved, moves
from src.data.transforms import INTERPOLATION, EvalTransform, Preprocessing
from src.errors import UserError


class TrainTransform:
    """Random crop and colours by the config's `train.augment`.

    whole: the part of crop `padded` that knows no chance: the whole image, size × size, of its
    short side's centre where proportions are kept.
    """

    def __init__(self, prep: Preprocessing, augment: Augment, seed: int):
        self.prep, self.augment, self.seed = prep, augment, seed
        self.whole = EvalTransform(replace(prep, crop_pct=1.0))
        self.evaluated = EvalTransform(prep)
        extra = named_transforms(augment.extra, prep.size)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # a misspelt argument only warns
            try:
                self.compose = A.Compose(_augmentations(prep, augment, extra))
            except (UserWarning, ValueError) as error:
                raise UserError(
                    f"train.augment: albumentations does not take it: {error}"
                ) from error

    def __call__(self, image: np.ndarray, draw: tuple[int, int]) -> np.ndarray:
        """[H, W, 3] uint8 → [size, size, 3] uint8; `draw` is (epoch, position in the epoch)."""
        image = self._uncropped(image, draw)
        if not self.compose.transforms:
            return image
        state = np.random.SeedSequence((self.seed, *draw)).generate_state(1)
        self.compose.set_random_seed(int(state[0]))
        return self.compose(image=image)["image"]

    def _uncropped(self, image: np.ndarray, draw: tuple[int, int]) -> np.ndarray:
        """What the chain of albumentations begins with."""
        match self.augment.crop:
            case "padded":
                move = moves(self.seed, *draw, 1, self.prep.size, self.augment)
                return moved(self.whole(image), move[0])
            case "random":
                around = [self.augment.padding] * 4
                return cv2.copyMakeBorder(self.prep.resized(image), *around, cv2.BORDER_CONSTANT)
            case "none":
                return self.evaluated(image)
        return image


def _augmentations(prep: Preprocessing, augment: Augment, extra: list) -> list:
    size, how, moved = prep.size, INTERPOLATION[prep.interpolation], augment.crop == "padded"
    steps = {
        "random_resized": [
            A.RandomResizedCrop(size=(size, size), scale=augment.scale, interpolation=how)
        ],
        "random": [A.RandomCrop(size, size)],
    }.get(augment.crop, [])  # the others are done before, `padded` with its flips
    if augment.hflip and not moved:
        steps.append(A.HorizontalFlip(p=0.5))
    if augment.vflip and not moved:
        steps.append(A.VerticalFlip(p=0.5))
    if augment.rotate:
        steps.append(A.Rotate(limit=augment.rotate, border_mode=cv2.BORDER_REFLECT_101, p=1.0))
    if policy := build_policy(augment.policy, prep.interpolation, prep.mean):
        steps.append(_Policy(policy))
    jitter = augment.color_jitter
    if jitter.on:
        parts = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        steps.append(A.ColorJitter(*parts, p=jitter.p))
    steps += extra
    if augment.erase:
        steps.append(
            A.CoarseDropout(
                num_holes_range=(1, 1),
                hole_height_range=(0.1, 0.4),
                hole_width_range=(0.1, 0.4),
                p=augment.erase,
            )
        )
    return steps


class _Policy(A.ImageOnlyTransform):
    """A policy in a chain of albumentations, seeded by the chain's random numbers."""

    class InitSchema(A.BasicTransform.InitSchema):
        policy: SeededTransform

    def __init__(self, policy: SeededTransform, p: float = 1.0):
        super().__init__(p=p)
        self.policy = policy

    def get_params(self) -> dict:
        return {"seed": self.py_random.getrandbits(63)}

    def apply(self, image: np.ndarray, seed: int, **_) -> np.ndarray:
        return self.policy(image, seed)
