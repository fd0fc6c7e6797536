"""CLIP, tuned to classes by what they are called (Radford et al., ICML 2021, section 3.1.4;
classification as in WiSE-FT: Wortsman et al., CVPR 2022, section 2; contrast over classes: Yang et
al., "Unified contrastive learning", CVPR 2022, eq. 2–4).

    f = image tower(x) [E]        t_m = T(caption m) / ‖T(caption m)‖ [E], T the text tower
    w_c = Σ_m t_m / ‖Σ_m t_m‖     over the captions m of class c: its names in all templates
    z_c = s cos(f, w_c)           s = exp(ℓ), ℓ learned and kept in 0 … ln max_scale, or fixed

That is the zero-shot classifier, where every training starts.

classification: w is a head like any other, [K, E], that the criterion trains with the image tower.
The text tower is dropped before the first step.

contrastive: image i of a batch has a caption m(i) of its class, another one each epoch, and

    S_ij = s cos(f_i, t_m(j)) [B, B]      Y_ij = 1[y_i = y_j] / |{k: y_k = y_i}|
    L = ½ mean_i Σ_j −Y_ij log softmax_j(S_ij)  +  ½ the same of Sᵀ, for which Y is as it is

so that images of one class, which share captions, are no negatives of each other. `targets:
diagonal` is as published: Y is the identity, and the second image of a class in a batch is pushed
away from a caption that is right. The batch is what one process passes forward together, so
train.micro_batch, too, says how many negatives there are. A trained text tower makes w anew
whenever the network is about to predict; a frozen one has made all t before the first step, and is
dropped. Either way head and files hold w alone, and inference needs no text.

ℓ is projected onto its bounds before each step, not clamped in the formula, which would hold it at
a bound for ever.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.config.networks import CLIP as Settings
from src.data.dataset import Batch
from src.networks.base import Body, Output, Progress
from src.networks.clip_towers import from_checkpoint, text_tower, tokens_of
from src.networks.heads import Cosine
from src.networks.origins import read_theirs
from src.networks.plain import Plain
from src.networks.transfer import fill

BATCH = 256  # captions at once, without gradients
FRESH = 1 / 0.07  # s of a CLIP that is trained from random weights


class TextHead(Cosine):
    """z = s cos(f, w_c) with a learned s; log_scale: ℓ []. fitted: whether w is."""

    def __init__(self, width: int, num_classes: int, most: float, fitted: bool):
        super().__init__(width, num_classes, 1.0)
        del self.scale
        self.bound = float(np.log(most))
        self.log_scale = nn.Parameter(torch.tensor(min(np.log(FRESH), self.bound)).float())
        if not fitted:
            weight = self.weight.detach()
            del self.weight
            self.register_buffer("weight", weight)

    @property
    def scale(self) -> torch.Tensor:
        """s; in training of ℓ as `keep_in_bounds` left it: clamp has no gradient at its bounds."""
        bounded = self.log_scale if self.training else self.log_scale.clamp(0, self.bound)
        return bounded.exp()

    @torch.no_grad()
    def keep_in_bounds(self) -> None:
        self.log_scale.clamp_(0, self.bound)

    def arrays(self) -> dict[str, torch.Tensor]:
        return {
            "weight": self.weight.detach(),
            "scale": self.log_scale.detach().clamp(0, self.bound).exp(),
        }


class CLIP(Plain):
    """images → embeddings [N, E], not normalised → logits [N, K]."""

    training_only = ("text.",)

    def __init__(self, model: Model, backbone: nn.Module, classes: Classes):
        super().__init__(model, backbone, classes)
        self.settings: Settings = model.network
        self.model = model
        self.contrastive = self.settings.tuning == "contrastive"
        self.text: nn.Module | None = None
        self.captions: Captions | None = None
        if self.settings.scale == "learned":
            width, most = self.classifier.weight.shape[1], self.settings.max_scale
            self.classifier = TextHead(width, classes.num, most, not self.contrastive)

    def begin(self, source: Path | None, captions: list[list[str]]) -> None:
        """The zero-shot classifier becomes the head. Without a source, the text tower is random;
        from another experiment, which has no text tower, the head is as it came."""
        if str(self.model.pretrained).startswith("experiment:"):
            return
        text = text_tower(self.model)
        if source is not None:
            state = from_checkpoint(read_theirs(source))
            fill(text, {k[5:]: v for k, v in state.items() if k.startswith("text.")}, source)
        text = text.to(self.classifier.weight.device)
        found = Captions(tokens_of(self.model, [c for own in captions for c in own]), captions)
        found.to(self.classifier.weight.device)
        rows = embedded(text, found.tokens)
        self.classifier.start_from({"weight": found.by_class(rows)})
        if self.contrastive:
            self.captions = found
            if self.settings.text_tower == "trained":
                self.text = text
            else:
                found.rows = rows

    def adopt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """ℓ is the head's; the text tower is for `begin`."""
        scale = state.get("logit_scale")
        state = {k: v for k, v in state.items() if not k.startswith(("text.", "logit_"))}
        if scale is None or self.settings.scale == "fixed":
            return state
        return state | {"classifier.log_scale": scale.reshape(())}

    def bodies(self) -> list[Body]:
        text = [] if self.text is None else [Body(self.text, layered=False)]
        return [*super().bodies(), *text]

    def train(self, mode: bool = True) -> nn.Module:
        """Before predictions the head takes what the text tower says now."""
        super().train(mode)
        if not mode and self.text is not None:
            rows = embedded(self.text, self.captions.tokens)
            self.classifier.start_from({"weight": self.captions.by_class(rows)})
        return self

    def loss(
        self, batch: Batch, criterion: nn.Module, progress: Progress
    ) -> tuple[dict[str, torch.Tensor], Output]:
        if self.settings.scale == "learned":
            self.classifier.keep_in_bounds()
        if not self.contrastive:
            return super().loss(batch, criterion, progress)
        output = self(batch.images)
        which = self.captions.of(batch, progress.epoch)  # [B]
        chosen, place = which.unique(return_inverse=True)
        if self.text is None:
            vectors = self.captions.rows[chosen]
        else:
            vectors = self.text(self.captions.tokens[chosen])
        found = caption_loss(
            output.features, vectors[place], batch.labels, self.classifier.scale,
            self.settings.targets == "diagonal",
        )  # fmt: skip
        return {"captions": found}, output


class Captions(nn.Module):
    """Of all classes, one class after the other. tokens: [M, L] · rows: t [M, E], where they are
    fixed"""

    def __init__(self, tokens: torch.Tensor, captions: list[list[str]]):
        super().__init__()
        counts = torch.tensor([len(own) for own in captions])
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("rows", None, persistent=False)
        self.register_buffer("counts", counts, persistent=False)  # [K]
        self.register_buffer("starts", counts.cumsum(0) - counts, persistent=False)

    def of(self, batch: Batch, epoch: int) -> torch.Tensor:
        """A caption for each image, [B]: the next one each epoch, from one of its own on."""
        counts = self.counts[batch.labels]
        return self.starts[batch.labels] + (batch.rows + epoch) % counts

    def by_class(self, rows: torch.Tensor) -> torch.Tensor:
        """t [M, E] → w [K, E]"""
        label = torch.repeat_interleave(self.counts)  # [M]
        sums = rows.new_zeros(len(self.counts), rows.shape[1]).index_add_(0, label, rows)
        return F.normalize(sums, dim=1)


@torch.no_grad()
def embedded(text: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """tokens [M, L] → t [M, E], as in evaluation."""
    training = text.training
    text.eval()
    with torch.autocast(tokens.device.type, enabled=False):
        parts = [F.normalize(text(part).float(), dim=1) for part in tokens.split(BATCH)]
    text.train(training)
    return torch.cat(parts)


def caption_loss(
    features: torch.Tensor,
    vectors: torch.Tensor,
    labels: torch.Tensor,
    scale: torch.Tensor,
    diagonal: bool,
) -> torch.Tensor:
    """L of images f [B, E] and their captions' vectors [B, E], labels [B], in float32."""
    with torch.autocast(features.device.type, enabled=False):
        cosines = F.normalize(features.float(), dim=1) @ F.normalize(vectors.float(), dim=1).T
        logits = scale * cosines  # [B, B]
        same = (labels[:, None] == labels).float()
        targets = torch.eye(len(labels)).to(same) if diagonal else same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
