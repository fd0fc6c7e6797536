"""Published policies of augmentation, by torchvision, each a function of an image and a seed.

RandAugment (Cubuk et al., CVPR-W 2020): n of 14 operations, drawn with replacement, all of
magnitude m on a scale of 0 to 30: identity, auto-contrast, equalise, rotate (30 degrees), solarise,
posterise (to 4 bits), colour, contrast, brightness, sharpness (a factor of 1 ± 0.9), shear along x
and y (0.3), translate along x and y (150 / 331 of the side). In brackets: at magnitude 30; the sign
is drawn. TrivialAugment (Müller & Hutter, ICCV 2021), its wide space: one of the 14, at one of 31
magnitudes up to 135 degrees, 2 bits, a factor of 1 ± 0.99, shear 0.99 and 32 pixels. AutoAugment
(Cubuk et al., CVPR 2019): one of 25 learned pairs, each operation with its own probability and
magnitude. What lies outside of the image is the mean colour, zero for the network.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from src.config.augment import Policy

SeededTransform = Callable[[np.ndarray, int], np.ndarray]
POLICIES = {
    "none": lambda section, common: None,
    "randaugment": lambda section, common: v2.RandAugment(section.n, section.m, **common),
    "trivialaugment": lambda section, common: v2.TrivialAugmentWide(**common),
    "autoaugment": lambda section, common: v2.AutoAugment(
        v2.AutoAugmentPolicy(section.learned_on), **common
    ),
}


def build_policy(section: Policy, interpolation: str, mean: tuple) -> SeededTransform | None:
    """([H, W, 3] uint8, seed) → [H, W, 3] uint8. mean: of RGB in 0..1"""
    fill = tuple(round(255 * min(max(part, 0), 1)) for part in mean)
    policy = POLICIES[section.name](section, {"interpolation": interpolation, "fill": fill})
    if policy is None:
        return None

    def transform(image: np.ndarray, seed: int) -> np.ndarray:
        generator = torch.default_generator  # the only one that torchvision draws from
        state = generator.get_state()
        generator.manual_seed(seed)
        try:
            return np.array(policy(Image.fromarray(image)))
        finally:
            generator.set_state(state)

    return transform
