"""Classifier re-training (Kang et al., ICLR 2020, section 4.1).

The representation stays; the linear classifier is initialised anew and trained with class-balanced
sampling: SGD with momentum 0.9, cosine to zero.
"""

import numpy as np
import torch
from torch.nn import functional as F

from src.data.samplers import epoch_order
from src.networks.heads import build_head
from src.rebalance.features import FeatureSet
from src.schema import CRT


def fit_crt(
    spec: CRT, data: FeatureSet, seed: int, device: torch.device
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the head's kind, `linear`, and its weight [K, D] and bias [K].

    With several views, each draw of an image takes one of its views at random.
    """
    views = torch.from_numpy(np.stack(data.some_views(spec.views))).to(device)  # [V, N, D]
    labels = torch.from_numpy(data.labels).to(device)
    torch.manual_seed(seed)
    head = build_head("linear", views.shape[-1], data.num_classes, scale=1.0).to(device)
    size = min(spec.batch_size, len(labels))
    steps = len(labels) // size
    optimizer = torch.optim.SGD(
        head.parameters(), lr=spec.lr, momentum=0.9, weight_decay=spec.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, spec.epochs * steps)
    for epoch in range(spec.epochs):
        order = epoch_order(spec.sampler, data.labels, data.num_classes, seed, epoch, spec.epochs)
        view = np.random.default_rng((seed, epoch, 1)).integers(len(views), size=len(order))
        for start in range(0, steps * size, size):
            rows = torch.from_numpy(order[start : start + size]).to(device)
            which = torch.from_numpy(view[start : start + size]).to(device)
            loss = F.cross_entropy(
                head(views[which, rows]), labels[rows], label_smoothing=spec.smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.kind, {name: tensor.cpu().numpy() for name, tensor in head.arrays().items()}
