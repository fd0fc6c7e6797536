"""Images in, network inputs out: what evaluation does to them, and what weights expect.

What training does is in augment.py. Images stay uint8 until they are on the device.
"""

from dataclasses import asdict, dataclass

import cv2
import numpy as np
import torch

cv2.setNumThreads(0)  # workers are the parallelism
INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def _short_side(width: int, height: int, side: int) -> tuple[int, int]:
    factor = side / min(width, height)
    return max(side, round(width * factor)), max(side, round(height * factor))


RESIZES = {  # (width, height, side) → width, height
    "short_side": _short_side,
    "exact": lambda width, height, side: (side, side),
}


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its input; it travels with the weights.

    size: pixels, height and width · crop_pct: the crop's share of the resized side · mean, std: of
    RGB in 0..1 · resize: what is resized before the crop, `model.resize`.
    """

    size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "short_side"  # of weights that were saved before there was a choice

    def resized(self, image: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """[H, W, 3] uint8 → size / crop_pct · scale pixels, and never fewer than size: its short
        side in proportion, or both sides."""
        height, width = image.shape[:2]
        side = max(self.size, round(self.size / self.crop_pct * scale))
        target = RESIZES[self.resize](width, height, side)
        if target == (width, height):
            return image
        shrinks = target[0] * target[1] < width * height
        how = cv2.INTER_AREA if shrinks else INTERPOLATION[self.interpolation]
        return cv2.resize(image, target, interpolation=how)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [N, 3, H, W] → float32, zero mean and unit variance, on the same device."""
        mean = torch.tensor(self.mean, device=images.device).mul(255).view(1, 3, 1, 1)
        scale = torch.tensor(self.std, device=images.device).mul(255).reciprocal().view(1, 3, 1, 1)
        return (images.float() - mean) * scale

    def as_dict(self) -> dict:
        return asdict(self)


def preprocessing_from(tree: dict) -> Preprocessing:
    """The inverse of `as_dict` after a trip through JSON. Errors: ValueError, TypeError or KeyError
    for what `as_dict` cannot have written."""
    prep = Preprocessing(**tree | {"mean": tuple(tree["mean"]), "std": tuple(tree["std"])})
    numbers = [prep.size, prep.crop_pct, *prep.mean, *prep.std]
    if len(numbers) != 8 or not all(isinstance(n, int | float) and abs(n) < 1e6 for n in numbers):
        raise ValueError(f"no preprocessing: {tree}")
    known = prep.interpolation in INTERPOLATION and prep.resize in RESIZES
    if prep.size < 1 or prep.crop_pct <= 0 or not known:
        raise ValueError(f"no preprocessing: {tree}")
    return prep


@dataclass(frozen=True)
class View:
    """One deterministic look at an image: evaluation's is the default, TTA has several.

    flip: mirrored left-right · corner: (y, x) of the crop in 0..1, centre is (0.5, 0.5) ·
    scale: factor on the size to which the image is resized before the crop · vertical: then
    mirrored up-down · turns: then turned by so many quarters of a circle, counterclockwise
    """

    flip: bool = False
    corner: tuple[float, float] = (0.5, 0.5)
    scale: float = 1.0
    vertical: bool = False
    turns: int = 0

    def as_dict(self) -> dict:
        """As manifests and keys of caches have it: what came later only where it is used, so that
        a view keeps the name it had."""
        found = asdict(self)
        later = {name: found.pop(name) for name in ("vertical", "turns")}
        return found | {name: value for name, value in later.items() if value}


class EvalTransform:
    """Resize to size / crop_pct · scale, crop size × size, maybe mirror and turn."""

    def __init__(self, prep: Preprocessing, view: View = View()):  # noqa: B008 (frozen)
        self.prep, self.view = prep, view

    def __call__(self, image: np.ndarray, draw: tuple[int, int] | None = None) -> np.ndarray:
        """[H, W, 3] uint8 → [size, size, 3] uint8."""
        size = self.prep.size
        image = self.prep.resized(image, self.view.scale)
        top = round((image.shape[0] - size) * self.view.corner[0])
        left = round((image.shape[1] - size) * self.view.corner[1])
        image = image[top : top + size, left : left + size]
        image = image[:: -1 if self.view.vertical else 1, :: -1 if self.view.flip else 1]
        return np.ascontiguousarray(np.rot90(image, self.view.turns))
