"""Mixing images within a batch: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

x̃ = λ x + (1 − λ) x[π], or a rectangle of area 1 − λ taken from x[π]; the loss is
λ L(z, y) + (1 − λ) L(z, y[π]), which suits every criterion.
"""

from dataclasses import replace

import numpy as np
import torch

from src.data.dataset import Batch
from src.schema import Mixing


def mix(batch: Batch, config: Mixing, rng: np.random.Generator) -> Batch:
    """Images must be normalised floats. One λ and one permutation π per call."""
    kinds = [(name, a) for name, a in (("mixup", config.mixup), ("cutmix", config.cutmix)) if a > 0]
    if not kinds or rng.random() >= config.probability:
        return batch
    kind, alpha = kinds[rng.integers(len(kinds))]
    share = float(rng.beta(alpha, alpha))
    order = torch.from_numpy(rng.permutation(len(batch.labels))).to(batch.labels.device)
    if kind == "mixup":
        images = torch.lerp(batch.images[order], batch.images, share)
    else:
        images, share = _paste(batch.images, order, share, rng)
    return replace(batch, images=images, partner=batch.labels[order], share=share)


def _paste(images: torch.Tensor, order: torch.Tensor, share: float, rng: np.random.Generator):
    """Paste the rectangle; the share is corrected to the pixels that were really kept."""
    height, width = images.shape[2:]
    cut = np.sqrt(1 - share)
    y, x = rng.integers(height), rng.integers(width)
    half_h, half_w = int(height * cut / 2), int(width * cut / 2)
    rows = slice(max(0, y - half_h), min(height, y + half_h))
    columns = slice(max(0, x - half_w), min(width, x + half_w))
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[order][:, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - area / (height * width)
