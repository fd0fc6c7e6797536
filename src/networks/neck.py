"""The neck: a layer of its own width between pooled features and the head, `model.neck`.

    pooled [N, C] → dropout → W f + b → batch norm → features [N, width]

What it gives are the network's features: what the head compares, and stage 2 after it. Margin heads
are mostly trained on such an embedding (Deng et al., CVPR 2019, "Implementation Details", where
another batch norm comes first). `model.dropout` comes after it, before the head.
"""

from torch import nn

from src.config.model import Neck


def build_neck(section: Neck | None, width: int) -> tuple[nn.Module, int]:
    """The module and the width of what it gives; None: it gives what it gets. width: C"""
    if section is None:
        return nn.Identity(), width
    layers = [
        nn.Dropout(section.dropout),
        nn.Linear(width, section.width, bias=not section.norm),
        *([nn.BatchNorm1d(section.width)] if section.norm else []),
    ]
    return nn.Sequential(*layers), section.width
