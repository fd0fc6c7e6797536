"""Second stage of weight balancing (Alshammari et al., CVPR 2022, section 4): MaxNorm, weight decay
and class-balanced weights, from stage 1's classifier on.

After each epoch every w_c with ‖w_c‖ > δ is projected onto the ball: w_c ← w_c δ / ‖w_c‖, where
δ = min‖w‖ + ratio · (max‖w‖ − min‖w‖) over stage 1's classifier; the bias is free. Class weights
are those of the effective number (Cui et al., CVPR 2019): v_c ∝ (1 − β) / (1 − β^N_c), Σ v = K.

Losses: `cb_ce` is Σ_i v_{y_i} CE_i / Σ_i v_{y_i}. `cb_softmax_bce` is what the authors' code does:
binary cross-entropy of the softmax against the one-hot label, times v_{y_i}, averaged over images
and classes, so gradients are about K times smaller than those of CE and a weight decay of 0.1
weighs K times more.
"""

import numpy as np
import torch
from torch.nn import functional as F

from src.config.heads import MaxNorm
from src.logits import norm_radius
from src.losses.class_balanced import effective_weights
from src.networks.heads import build_head
from src.rebalance.features import FeatureSet, stage1_classifier
from src.rebalance.sgd import train


def fit_maxnorm(
    spec: MaxNorm, data: FeatureSet, seed: int, device: torch.device
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the head's kind, `linear`, and its weight [K, D] and bias [K].

    Errors: UserError unless stage 1 has a linear classifier.
    """
    weight, bias = stage1_classifier(data, spec.head)
    head = build_head("linear", data.width, data.num_classes, scale=1.0)
    head.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    head.to(device)
    radius = norm_radius(np.linalg.norm(weight, axis=1), spec.ratio)
    counts = np.bincount(data.labels, minlength=data.num_classes)
    share = torch.from_numpy(effective_weights(counts, spec.beta)).float().to(device)
    form = LOSSES[spec.loss]
    train(
        head,
        lambda features, labels: form(head(features), labels, share[labels]),
        data.batches(spec, seed, device),
        len(data.labels),
        spec,
        after_epoch=lambda: project_(head.weight, radius),
    )
    return "linear", {name: tensor.cpu().numpy() for name, tensor in head.arrays().items()}


@torch.no_grad()
def project_(weight: torch.Tensor, radius: float) -> None:
    """Rows [K, D] longer than the radius are cut to it, in place; the others stay."""
    norms = weight.norm(dim=1, keepdim=True)
    weight.mul_(torch.where(norms > radius, radius / norms, torch.ones_like(norms)))


def cb_ce(logits: torch.Tensor, labels: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """logits [N, K], labels [N], the labels' weights [N] → a number."""
    return (share * F.cross_entropy(logits, labels, reduction="none")).sum() / share.sum()


def cb_softmax_bce(logits: torch.Tensor, labels: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The same for −[log p_y + Σ_{c≠y} log(1 − p_c)], averaged over images and classes."""
    target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    value = F.binary_cross_entropy(logits.softmax(1), target, reduction="none")
    return (share[:, None] * value).mean()


LOSSES = {"cb_ce": cb_ce, "cb_softmax_bce": cb_softmax_bce}
