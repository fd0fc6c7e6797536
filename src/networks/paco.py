"""Generalized parametric contrastive learning (GPaCo; Cui et al., TPAMI 2023): PaCo (Cui et al.,
ICCV 2021) without its momentum encoder, so there is one network and one optimizer.

Supervised contrastive learning, with the C classes as further keys. Every image is seen in two
views (`train.second_sampler: same`). f: features of a view · z = W f + b: its logits, [C] ·
v = G(f) / ‖G(f)‖, G a perceptron of two layers · π_c: share of class c in the training images ·
y: its class. A view i is compared with every class and with the set A(i) of samples: the other
views of the batch and the queue, which holds second views of the batches before, as they were then.

    s_c = z_c + log π_c + o                  for class c, balanced softmax (train.criterion)
    s_k = v_i · v_k / T                      for sample k in A(i)
    L_i = − Σ_k w_k log softmax(s)_k / Σ_k w_k      over classes and samples together, with
    w_k = β for class y_i, α for samples of class y_i, 0 for the rest

Without samples this is balanced softmax, for any α. With α = 0 samples still are negatives, also
those of the own class. Prediction is z: G and the queue serve training alone.

o is `model.network.offset`. With P samples of class y_i in A(i) and W = β + αP the loss is the sum
of three terms,

    L_i = β/W · balanced softmax + αP/W · supervised contrast + H,
    H = − β/W log p − αP/W log(1 − p),    p: share of all classes together in softmax(s)

and H wants p = β/W. Fresh classes have a Σ_c exp s_c of about exp o, K samples with cosines near m
one of K exp(m/T): e¹⁶ for pretrained features at T = 0.05. The published o = 0 starts at p = 1e-7.
Until z has risen by about 1/T, H cancels what pushes the other classes' logits down and leaves the
push on the own one, for which frequent classes win, and π counts for nothing. The authors have 400
epochs for that; a fine-tuning spends most of its few hundred steps on it. Hence o = 1/T + log(β/α)
there: with P samples of cosine 1 and no others, p = β/W for any P.

All projections become one, and the contrast idle, where samples have next to no share (o = 2/T)
and nothing repels, or where long steps make ‖G(f)‖ grow, after which its direction hardly moves
(SGD with lr 0.1 and four steps of warm-up on 268 digits: from 2 to 290). z does without contrast.

The method's own limit: few images of a class are few positives, so the contrast weighs αP/W, about
a tenth, and the rest is balanced softmax in two views of each image. Logits and cosines/T share one
softmax, so whenever the cosines move, p has to be found anew.

Several processes: a view meets the views of its own process, and a queue that holds those of all
processes and is the same on each. Micro-batches: a view meets the views of its part, and those of
the parts before it in the queue. The queue is a buffer, hence in the checkpoint; the moving average
of the weights carries one too, an average of strangers, which nothing reads.

The authors augment the two views differently on CIFAR; here both follow `train.augment`. Their
queue starts with random vectors, this one empty. Their GPaCo code has a third layer in G.
"""

from math import log

import torch
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.config.networks import PaCo as Settings
from src.data.dataset import Batch
from src.networks.base import Output, Progress
from src.networks.plain import Plain
from src.runtime import gather_rows

EMPTY = -1  # label of a place in the queue that holds nothing yet


class PaCo(Plain):
    """`projection` is G; `queue` [Q, d] and `queue_labels` [Q] hold the newest views first."""

    def __init__(self, model: Model, backbone: nn.Module, classes: Classes):
        super().__init__(model, backbone, classes)
        self.settings = model.network
        usual = 0.0 if model.pretrained is False else level(model.network)
        self.offset = usual if model.network.offset is None else model.network.offset
        inner, width = self.width, model.network.width
        self.projection = nn.Sequential(nn.Linear(inner, inner), nn.ReLU(), nn.Linear(inner, width))
        self.register_buffer("queue", torch.zeros(model.network.queue, width))
        self.register_buffer("queue_labels", torch.full((model.network.queue,), EMPTY))

    def loss(
        self, batch: Batch, criterion: nn.Module, progress: Progress
    ) -> tuple[dict[str, torch.Tensor], Output]:
        """One term, which takes the `prior` τ log N_c, [C], of balanced softmax, the criterion, and
        nothing else. Each call moves the queue."""
        count, labels = len(batch.labels), torch.cat([batch.labels, batch.other.labels])  # [2N]
        output = self(torch.cat([batch.images, batch.other.images]))  # [2N, C], [2N, D]
        weight = 1.0  # of each view, [2N]; with one label each, its share is the image's weight
        if batch.targets is not None:
            weight = torch.cat([part.targets.shares[:, 0] for part in (batch, batch.other)])
        with torch.autocast(labels.device.type, enabled=False):  # cosines need float32
            classes = output.logits.float() + F.log_softmax(criterion.prior, 0)  # [2N, C]
            classes = classes + self.offset
            views = F.normalize(self.projection(output.features.float()), dim=1)  # [2N, d]
            queue = self.queue, self.queue_labels
            loss = contrast(classes, views, labels, *queue, self.settings, weight)
            self.remember(views[count:].detach(), batch.other.labels)
        return {"contrast": loss}, Output(output.logits[:count], output.features[:count])

    @torch.no_grad()
    def remember(self, views: torch.Tensor, labels: torch.Tensor) -> None:
        """Put views [N, d] of all processes into the queue; the oldest leave it."""
        size = len(self.queue)
        self.queue.copy_(torch.cat([gather_rows(views), self.queue])[:size])
        self.queue_labels.copy_(torch.cat([gather_rows(labels), self.queue_labels])[:size])

    def adopt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A training starts with an empty queue: another's labels may be of other classes."""
        return {key: tensor for key, tensor in state.items() if not key.startswith("queue")}


def level(settings: Settings) -> float:
    """b for which H is at rest once samples of one class have cosine 1 and the others no share."""
    alone = 1 / settings.temperature
    return alone + log(settings.beta / settings.alpha) if settings.alpha else alone


def contrast(
    classes: torch.Tensor,
    views: torch.Tensor,
    labels: torch.Tensor,
    queue: torch.Tensor,
    queue_labels: torch.Tensor,
    settings: Settings,
    share: float | torch.Tensor = 1.0,
) -> torch.Tensor:
    """Mean of L_i over the views of a batch, written as log Σ_k exp s_k − Σ_k w_k s_k / Σ_k w_k.

    classes: s_c [M, C] · views: v [M, d] · labels: [M] · queue: [Q, d] · queue_labels: [Q] ·
    share: factor on L_i, one number or [M]
    """
    keys = torch.cat([views, queue])  # [M + Q, d]
    key_labels = torch.cat([labels, queue_labels])  # [M + Q]
    samples = views @ keys.T / settings.temperature  # [M, M + Q]
    itself = torch.eye(*samples.shape, dtype=torch.bool, device=samples.device)
    absent = itself | (key_labels == EMPTY)  # [M, M + Q], what is not in A(i)
    every = torch.cat([classes, samples.masked_fill(absent, -torch.inf)], 1)  # [M, C + M + Q]
    same = (labels[:, None] == key_labels) & ~itself  # [M, M + Q]
    own = classes.gather(1, labels[:, None])[:, 0]  # [M], s of class y_i
    wanted = settings.beta * own + settings.alpha * (same * samples).sum(1)  # [M]
    weight = settings.beta + settings.alpha * same.sum(1)  # [M]
    return (share * (every.logsumexp(1) - wanted / weight)).mean()
