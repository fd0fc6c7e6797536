"""Mixing pairs of images: mixup (Zhang et al., ICLR 2018), CutMix (Yun et al., ICCV 2019), manifold
mixup (Verma et al., ICML 2019), and Remix's labels (Chou et al., ECCV workshops 2020).

x̃ = λ x + (1 − λ) x', or a rectangle of area 1 − λ taken from x'; manifold mixup does it to the
input of a stage of the network. The loss is λ_y L(z, y) + (1 − λ_y) L(z, y'), which suits every
criterion; λ_y is λ except with Remix. The partners x' are the batch in another order, or the images
of `train.second_sampler` where there is one (two-sampler mixup).
"""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from src.config.losses import Mixing
from src.data.dataset import Batch, HiddenMix
from src.errors import UserError
from src.networks.base import Network


class Mixer:
    """Mixes batches as the config says; every choice comes from the generator that it is given.

    counts: training images per label, [K], for Remix · points: places inside the network where
    manifold mixup can mix, beside the images themselves
    """

    def __init__(self, config: Mixing, counts: np.ndarray, points: int):
        if config.manifold and not points:
            raise UserError(
                "train.mixing.manifold: this backbone has no stages that are known; use "
                "train.mixing.mixup, which mixes the images"
            )
        self.config, self.counts, self.points = config, torch.as_tensor(counts), points

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Images must be normalised floats. One λ and one order of partners per call."""
        kinds = list(self.config.alphas.items())
        if not kinds or rng.random() >= self.config.probability:
            return batch
        kind, alpha = kinds[rng.integers(len(kinds))]
        share = float(rng.beta(alpha, alpha))
        order = torch.from_numpy(rng.permutation(len(batch.labels))).to(batch.labels.device)
        point = int(rng.integers(1 + self.points)) if kind == "manifold" else 0
        other, hidden = batch.other, None
        partner = batch.labels[order] if other is None else other.labels
        if point:
            images = batch.images if other is None else torch.cat([batch.images, other.images])
            hidden = HiddenMix(point, share, order if other is None else None)
        else:
            others = batch.images[order] if other is None else other.images
            if kind == "cutmix":
                images, share = _paste(batch.images, others, share, rng)
            else:
                images = torch.lerp(others, batch.images, share)
        label_share = self._label_share(batch.labels, partner, share)
        mixed = replace(batch, images=images, partner=partner, share=label_share, hidden=hidden)
        if batch.teacher is not None:
            said = batch.teacher[order] if other is None else other.teacher
            mixed = replace(mixed, partner_teacher=said)
        if batch.targets is None:
            return mixed
        theirs = batch.targets.take(order) if other is None else other.targets
        return replace(mixed, partner_targets=theirs)

    def _label_share(self, labels: torch.Tensor, partner: torch.Tensor, share: float):
        """λ_y: λ, or Remix's per pair, [N], eq. 3: a class with κ times fewer images takes the
        whole label where the other one has a share below τ of the image."""
        if not self.config.remix:
            return share
        counts = self.counts.to(labels.device)
        first, second = counts[labels], counts[partner]
        ratio, limit = self.config.remix_ratio, self.config.remix_share
        shares = torch.full(labels.shape, share, device=labels.device)
        if share < limit:
            shares[first >= ratio * second] = 0.0
        if 1 - share < limit:
            shares[second >= ratio * first] = 1.0
        return shares


def _paste(images: torch.Tensor, others: torch.Tensor, share: float, rng: np.random.Generator):
    """Paste the rectangle; the share is corrected to the pixels that were really kept."""
    height, width = images.shape[2:]
    cut = np.sqrt(1 - share)
    y, x = rng.integers(height), rng.integers(width)
    half_h, half_w = int(height * cut / 2), int(width * cut / 2)
    rows = slice(max(0, y - half_h), min(height, y + half_h))
    columns = slice(max(0, x - half_w), min(width, x + half_w))
    mixed = images.clone()
    mixed[:, :, rows, columns] = others[:, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - area / (height * width)


@contextmanager
def hidden_mixing(network: Network, batch: Batch):
    """While it lasts, forward passes over `batch.images` mix the input of the chosen stage.

    With an order, activations [N, …] mix with their own in that order; without, the second half
    of [2N, …] is mixed into the first and what follows sees N.
    """
    hidden = batch.hidden
    if hidden is None:
        yield
        return

    def mix(stage, inputs: tuple) -> tuple:
        first, *rest = inputs
        if hidden.order is None:
            first, others = first.chunk(2)
        else:
            others = first[hidden.order]
        return torch.lerp(others, first, hidden.share), *rest

    handle = network.mix_points()[hidden.point - 1].register_forward_pre_hook(mix)
    try:
        yield
    finally:
        handle.remove()
