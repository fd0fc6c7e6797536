"""RIDE (Wang, Lian, Miao, Liu, Yu: "Long-tailed Recognition by Routing Diverse Distribution-Aware
Experts", ICLR 2021): experts on a shared trunk that are all to be right, and not to agree.

Expert e has the last stages of the backbone (`before_last_scales` in cut.py) and a head to itself;
z_e: its logits [N, K] · E experts · z̄ = mean of z_e · p_e = softmax(z_e / T), p̄ = softmax(z̄ / T).

    logits = z̄
    L      = Σ_e L(z_e, y) − λ T² Σ_e KL(p̄ ‖ p_e)

The paper's diversity compares pairs of experts. This is the authors' code, which compares each with
the mean, whose gradient it stops; that changes nothing, as p̄ is where Σ_e KL(· ‖ p_e) is least:

    Σ_e KL(p̄ ‖ p_e) = Σ_e lse(z_e / T) − E lse(z̄ / T)

Hence with cross-entropy and T = 1, L = (1 − λ) Σ_e CE(z_e, y) + λ E CE(z̄, y): λ = 0 trains experts
that ignore each other, λ = 1 their mean alone, and beyond λ T = 1 there is no lower bound. Class
weights (`train.deferred`) weigh the criterion, not the diversity.

Trained from scratch, the experts' stages have ¼ fewer channels (of a CIFAR ResNet; timm's keep
theirs) and weights of their own. From pretrained weights each starts as a copy of these, and fresh
heads make them differ: equal experts would have equal gradients for ever.

Left out: the paper's class-wise temperature, its expert-assignment router, which saves time and no
errors, and its self-distillation from a larger model.
"""

from copy import deepcopy

import torch
from torch import nn
from torch.nn import functional as F

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.data.dataset import Batch
from src.errors import UserError
from src.networks.backbone import build_backbone, stages
from src.networks.base import Body, Network, Output, Progress, mixed
from src.networks.cifar_resnet import DEPTHS
from src.networks.cut import before_last_scales, copied
from src.networks.heads import Cosine, Linear, class_head

NARROW = 0.75


class RIDE(Network):
    """The first expert is the backbone's own end; `branches` are the ends of the others.

    Errors: UserError for a backbone that cannot be cut, or not be built with `ride.width`.
    """

    def __init__(self, model: Model, backbone: nn.Module, classes: Classes):
        super().__init__()
        self.settings, self.dropout = model.network, model.dropout
        scratch = model.pretrained is False
        small = model.backbone in DEPTHS
        width = model.network.width or (NARROW if small and scratch else 1.0)
        if width < 1:
            backbone = build_backbone(model, pretrained=False, width=width)
        self.backbone, self.narrow = backbone, width < 1
        branch = before_last_scales(backbone).branch
        self.branches = nn.ModuleList()
        for _ in range(model.network.experts - 1):
            fresh = build_backbone(model, pretrained=False, width=width) if scratch else backbone
            own = [fresh.get_submodule(name) for name in branch]
            self.branches.append(deepcopy(nn.Sequential(*own)))
        self.classifier = MeanOfHeads(
            class_head(model, backbone.num_features, classes) for _ in range(model.network.experts)
        )

    def forward(self, images: torch.Tensor) -> Output:
        """features: [N, E D], those of all experts."""
        features = self._features(images)
        return Output(self.classifier(self._dropped(features)), features)

    def loss(
        self, batch: Batch, criterion: nn.Module, progress: Progress
    ) -> tuple[dict[str, torch.Tensor], Output]:
        features = self._features(batch.images)
        logits = self.classifier.each(self._dropped(features))
        diversity = divergence(logits, self.settings.temperature)
        terms = {
            "criterion": sum(mixed(criterion, z, batch) for z in logits),
            "diversity": -self.settings.diversity * diversity,
        }
        return terms, Output(logits.mean(0), features)

    def mix_points(self) -> list[nn.Module]:
        """The shared stages: all experts must see the same mixture."""
        trunk = before_last_scales(self.backbone).trunk
        return [stage for stage in stages(self.backbone) if stage in trunk]

    def bodies(self) -> list[Body]:
        """The branches are the last layers alone, at the top of what layer decay lowers."""
        return [Body(self.backbone), *(Body(branch, layered=False) for branch in self.branches)]

    def adopt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The last stages of a plain network go into every expert, its head into none; those of
        the first of fewer experts go into the further ones.

        Errors: UserError when the experts' stages are narrower than that.
        """
        like_this = any(key.startswith("branches.") for key in state)
        if self.narrow and not like_this:
            raise UserError(
                f"model.network.width={self.settings.width}: weights of a whole network do not fit "
                "into experts with fewer channels; set model.network.width=1 (or null), or "
                "model.pretrained=false"
            )
        branch = before_last_scales(self.backbone).branch
        for e in range(len(self.branches)):
            state = copied(state, branch, f"branches.{e}") | state
        return state

    @staticmethod
    def plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The first expert: its stages are the backbone's own, and its head becomes the head."""
        first = "classifier.heads.0."
        return {
            "classifier." + key.removeprefix(first) if key.startswith(first) else key: tensor
            for key, tensor in state.items()
        }

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """[N, E D], of one expert after the other, each as `MeanOfHeads.seen` gives them."""
        trunk, branch, pool = before_last_scales(self.backbone)
        for step in trunk:
            images = step(images)
        found = []
        for modules in ([self.backbone.get_submodule(name) for name in branch], *self.branches):
            out = images
            for module in modules:
                out = module(out)
            found.append(self.classifier.seen(pool(out)))
        return torch.cat(found, 1)

    def _dropped(self, features: torch.Tensor) -> torch.Tensor:
        return F.dropout(features, self.dropout, self.training)


class MeanOfHeads(nn.Module):
    """z̄ = W f + b in f = [f_1 … f_E], [N, E D]: one linear head, for all that comes after training.

    Its W is [W_1 … W_E] / E and its b the mean of b_e. A cosine head is linear in f_e = √D g / ‖g‖,
    g what the expert gives: W_e holds s w_c / (√D ‖w_c‖). √D keeps the features' entries near 1,
    where the learning rates of stage 2 are at home.
    """

    kind = "linear"

    def __init__(self, heads):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def seen(self, features: torch.Tensor) -> torch.Tensor:
        """What of an expert's features [N, D] its head depends on."""
        if self.heads[0].kind == "linear":
            return features
        return features.shape[1] ** 0.5 * F.normalize(features.float(), dim=1)

    def each(self, features: torch.Tensor) -> torch.Tensor:
        """[N, E D] → the experts' logits [E, N, K] in float32"""
        parts = features.chunk(len(self.heads), 1)
        return torch.stack([head(f) for head, f in zip(self.heads, parts, strict=True)]).float()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.each(features).mean(0)

    @property
    def weight(self) -> torch.Tensor:
        """[K, E D]"""
        return torch.cat([_linear(head)[0] for head in self.heads], 1) / len(self.heads)

    def arrays(self) -> dict[str, torch.Tensor]:
        """What head.safetensors holds."""
        bias = torch.stack([_linear(head)[1] for head in self.heads]).mean(0)
        return {"weight": self.weight.detach(), "bias": bias.detach()}

    def start_from(self, arrays: dict[str, torch.Tensor]) -> None:
        """Each expert from its part of the weight [K, E D], so that their mean is the whole."""
        count = len(self.heads)
        for head, part in zip(self.heads, arrays["weight"].chunk(count, 1), strict=True):
            head.start_from(arrays | {"weight": count * part})


def _linear(head: Linear | Cosine) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [K, D] and bias [K] for features as `MeanOfHeads.seen` gives them."""
    if head.kind == "linear":
        return head.weight, head.bias
    weight = head.scale / head.weight.shape[1] ** 0.5 * F.normalize(head.weight, dim=1)
    return weight, weight.new_zeros(len(weight))


def divergence(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² Σ_e KL(p̄ ‖ p_e), a mean over images; logits: [E, N, K]. Zero where experts agree, and the
    same when a number is added to all logits of an expert's row."""
    mean = F.log_softmax(logits.mean(0) / temperature, 1).expand_as(logits)
    each = F.log_softmax(logits / temperature, 2)
    total = F.kl_div(each, mean, reduction="sum", log_target=True)
    return temperature**2 * total / logits.shape[1]
