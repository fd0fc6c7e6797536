"""Optimizer and learning-rate schedule, both per optimizer step; layer decay through timm."""

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from src.config.training import Train
from src.errors import UserError
from src.networks.base import Body


def build_optimizer(train: Train, module: nn.Module, bodies: list[Body]) -> torch.optim.Optimizer:
    """SGD with momentum, Nesterov's or classical, AdamW or Adam.

    Groups carry `lr_scale`, which timm's schedulers multiply with the scheduled lr: layer decay for
    layered bodies, times each body's own factor, and `head_lr_factor` for everything else in
    `module`. Biases and norms do not decay, unless `decay_all` asks for it, as in the training of
    LDAM (Cao et al. 2019) and its followers. Frozen parameters are in no group.
    bodies: of the network
    """
    groups = [group for body in bodies for group in _body_groups(train, body)]
    inside = {id(p) for body in bodies for p in body.module.parameters()}
    rest = [(n, p) for n, p in module.named_parameters() if id(p) not in inside and p.requires_grad]
    for decay, members in (
        (train.weight_decay, [p for n, p in rest if p.ndim > 1]),
        (0.0, [p for n, p in rest if p.ndim <= 1]),
    ):
        if members:
            groups.append(
                {"params": members, "weight_decay": decay, "lr_scale": train.head_lr_factor}
            )
    if train.decay_all:
        groups = [group | {"weight_decay": train.weight_decay} for group in groups]
    if train.optimizer == "sgd":
        nesterov = train.nesterov and train.momentum > 0  # torch refuses it without momentum
        return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, nesterov=nesterov)
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=train.lr, betas=(train.momentum, train.beta2), eps=train.epsilon)


def _body_groups(train: Train, body: Body) -> list[dict]:
    if train.layer_decay == 1 or not body.layered:
        groups = param_groups_weight_decay(body.module, train.weight_decay)
    elif hasattr(body.module, "group_matcher"):
        decay = train.layer_decay
        groups = param_groups_layer_decay(body.module, train.weight_decay, layer_decay=decay)
    else:
        raise UserError(
            "train.layer_decay needs a timm backbone that knows its layers; "
            f"{type(body.module).__name__} does not, set train.layer_decay=1"
        )
    if body.lr_factor == 1:
        return groups
    return [g | {"lr_scale": g.get("lr_scale", 1.0) * body.lr_factor} for g in groups]


def build_schedule(train: Train, optimizer: torch.optim.Optimizer, steps: int) -> Scheduler:
    """lr as a function of the step alone, so that a resumed run needs no state of it.

    Cosine from `lr` to `min_lr`, or multi-step; linear warm-up from lr / 100 comes first, of half
    the training where it would be all of it. `steps`: optimizer steps per epoch. Call
    `step_update(step)` before each step.
    """
    shorter = train.warmup_epochs < train.epochs
    warmup = round((train.warmup_epochs if shorter else train.epochs / 2) * steps)
    total = max(train.epochs, 1) * steps  # timm wants some, also where none is taken
    common = {
        "warmup_t": warmup,
        "warmup_lr_init": train.lr / 100,
        "warmup_prefix": False,
        "t_in_epochs": False,
    }
    if train.schedule == "cosine":
        return CosineLRScheduler(optimizer, t_initial=total, lr_min=train.min_lr, **common)
    drops = [round(m * total) + 1 for m in train.milestones]  # timm drops one step early
    return MultiStepLRScheduler(optimizer, decay_t=drops, decay_rate=train.gamma, **common)
