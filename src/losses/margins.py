"""Margins on the label's angle or cosine, fixed or growing as classes get rarer.

θ_c: angle between features and centre of class c, z_c = s cos θ_c: logits of a cosine head · y: the
label · m_c: margin of class c. The label's logit is made smaller and cross-entropy does the rest:

    ArcFace (Deng et al., CVPR 2019, eq. 3)    s cos(θ_y + m_y)        in radians
    CosFace (Wang et al., CVPR 2018, eq. 4)    s (cos θ_y − m_y)       in cosines

cos(θ + m) rises again beyond θ = π − m; from there on it is cos θ − m sin m, as in the authors'
code, so that a larger angle never costs less. It steps down there, by less than 0.6.

Margins that grow with rarity (Ha et al., 2020, arXiv 2010.05350, Google Landmark Recognition, third
place): m_c = a N_c^{−λ} + b with N_c the training images of class c, λ = 1/4. As in their code, a
and b are such that the rarest class has the largest margin and the most frequent the smallest,
there 0.5 and 0.05. Classes without an image count as the rarest.

A margin asks more of an image of its own class and takes no prior out: what frequent classes gain
from being frequent is left to `train.deferred`, or to 04.
"""

import numpy as np
import torch
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.losses import ArcFace, CosFace
from src.losses.base import Criterion

STEEP = 1e-10  # sin² θ below which sin θ is a number without a gradient, which would be 1 / 0


def class_margins(section: ArcFace | CosFace, counts: np.ndarray) -> np.ndarray:
    """m_c, [K]."""
    counts = np.asarray(counts, float)
    counts = np.maximum(counts, counts[counts > 0].min())
    share = counts**-section.power
    span = share.max() - share.min()
    if span == 0:  # power 0, or all classes have as many images
        return np.full(len(counts), section.margin)
    low = section.min_margin
    return low + (section.margin - low) * (share - share.min()) / span


class MarginLoss(Criterion):
    """Cross-entropy after the label's cosine was made smaller. Subclasses define `lowered`."""

    def __init__(self, config: ArcFace | CosFace, classes: Classes, scale: float = 1.0):
        super().__init__(config, classes)
        self.scale, self.smoothing = scale, config.smoothing
        self.constant("margins", class_margins(config, classes.counts))

    def lowered(self, cosine: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
        """The label's cosine and its margin, [N, 1] each → what stands for it, [N, 1]"""
        raise NotImplementedError

    def per_sample(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        label = labels[:, None]  # [N, 1]
        own = self.lowered(logits.gather(1, label) / self.scale, self.margins[label])
        logits = logits.scatter(1, label, self.scale * own.to(logits.dtype))  # [N, K]
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)


class ArcFaceLoss(MarginLoss):
    def lowered(self, cosine: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
        cosine = cosine.clamp(-1, 1)
        sine = ((1 - cosine) * (1 + cosine)).clamp(min=STEEP).sqrt()
        turned = cosine * margin.cos() - sine * margin.sin()  # cos(θ + m)
        beyond = cosine < -margin.cos()  # θ > π − m
        return torch.where(beyond, cosine - margin * margin.sin(), turned)


class CosFaceLoss(MarginLoss):
    def lowered(self, cosine: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
        return cosine - margin
