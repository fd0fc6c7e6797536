"""Training images that grow with the epochs, to the size of evaluation (`train.resizing`).

A draw carries its epoch and the epoch gives the size, so that workers that live as long as the
training need not be told, and a run that goes on later sees what it would have seen.

Small images first, larger ones later: Howard in DAWNBench 2018 (fast.ai's ImageNet in 18 minutes);
Tan & Le, EfficientNetV2, ICML 2021, section 4.2. They also raise the strength of the augmentation
with the size, which is not done here. Training below evaluation's size to the end: random crops
enlarge what they show, evaluation does not, and more pixels there make up for it (Touvron et al.,
Fixing the train-test resolution discrepancy, NeurIPS 2019).
"""

from dataclasses import replace

import numpy as np

from src.config.schema import Config
from src.config.training import Train
from src.data.augment import TrainTransform
from src.data.transforms import Preprocessing


class ResizingTransform:
    """`TrainTransform` at the size of the draw's epoch: crops, margins and all else are made for
    that size, with the random numbers that they would have at any other."""

    def __init__(self, prep: Preprocessing, train: Train, seed: int):
        self.train, self.size = train, prep.size
        sizes = {prep.size, *(step.size for step in train.resizing)}
        self.at = {s: TrainTransform(replace(prep, size=s), train.augment, seed) for s in sizes}

    def __call__(self, image: np.ndarray, draw: tuple[int, int]) -> np.ndarray:
        """[H, W, 3] uint8 → [s, s, 3] uint8; `draw` is (epoch, position in the epoch)."""
        return self.at[self.train.resized(draw[0]) or self.size](image, draw)


def training_transform(
    prep: Preprocessing, train: Train, seed: int
) -> TrainTransform | ResizingTransform:
    """What training does to each image. Errors: UserError for a `train.augment` that cannot be."""
    if train.resizing:
        return ResizingTransform(prep, train, seed)
    return TrainTransform(prep, train.augment, seed)


def check_augment(config: Config) -> None:
    """Errors: UserError for a `train.augment` that cannot be; for before anything is loaded."""
    model, grey = config.model, (0.5, 0.5, 0.5)
    prep = Preprocessing(model.image_size, model.crop_pct, model.interpolation, grey, grey)
    training_transform(prep, config.train, config.seed)
