"""Keys of stage 1's criteria, of deferring and of mixing."""

from typing import Literal

from pydantic import Field, model_validator

from src.config.section import EPOCHS, Section, named

Sampler = Literal["instance", "class_balanced", "square_root", "power", "progressive", "reversed"]
SecondSampler = Literal[Sampler, "same"]
SMOOTHING = Field(0.0, ge=0, lt=1, description="label smoothing")
BETA = "beta of the effective number (1 − beta^n) / (1 − beta) of n images; 0: all classes weigh 1"


class CrossEntropy(Section):
    name: Literal["cross_entropy"] = "cross_entropy"
    smoothing: float = SMOOTHING


class Focal(Section):
    name: Literal["focal"] = "focal"
    gamma: float = Field(1.0, ge=0, description="how much easy images count less; 0: not at all")


class ClassBalanced(Section):
    name: Literal["class_balanced"] = "class_balanced"
    beta: float = Field(0.9999, ge=0, lt=1, description=BETA)
    gamma: float = Field(0.0, ge=0, description="above 0: focal loss; 0: cross-entropy")
    form: Literal["softmax", "sigmoid"] = Field(
        "softmax",
        description="sigmoid: one yes-or-no question per class, as CB-focal was published",
    )


class LDAM(Section):
    name: Literal["ldam"] = "ldam"
    max_margin: float = Field(
        0.5, ge=0, description="margin of the smallest class, in cosines; needs model.head: cosine"
    )


class Margin(Section):
    """Margins of the label; `margin` is that of the rarest class, or of all."""

    margin: float
    min_margin: float = Field(0.05, ge=0, description="power: margin of the most frequent class")
    power: float = Field(
        0.0,
        ge=0,
        le=2,
        description="lambda: margins grow with N^-lambda of a class's N images, from min_margin to "
        "margin; 0: margin for all classes. Published with sub-centre ArcFace: 0.25",
    )
    smoothing: float = SMOOTHING

    @model_validator(mode="after")
    def _used(self):
        if "min_margin" in self.changed() and not self.power:
            raise ValueError("min_margin is of margins that grow; set power=0.25 or remove it")
        if self.power and self.min_margin > self.margin:
            raise ValueError(
                f"min_margin ({self.min_margin}) must not be above margin ({self.margin}), which "
                "the rarest class has"
            )
        return self


class ArcFace(Margin):
    name: Literal["arcface"] = "arcface"
    margin: float = Field(
        0.5,
        ge=0,
        le=1.5,
        description="of the rarest class, or of all, in radians; needs model.head: cosine or "
        "subcentre",
    )


class CosFace(Margin):
    name: Literal["cosface"] = "cosface"
    margin: float = Field(
        0.35,
        ge=0,
        le=1,
        description="of the rarest class, or of all, in cosines; needs model.head: cosine or "
        "subcentre",
    )


class BalancedSoftmax(Section):
    name: Literal["balanced_softmax"] = "balanced_softmax"
    tau: float = Field(1.0, ge=0, description="strength of the class prior; 0 is cross-entropy")
    smoothing: float = SMOOTHING


class LogitAdjusted(BalancedSoftmax):
    name: Literal["logit_adjusted"] = "logit_adjusted"


class LADE(Section):
    name: Literal["lade"] = "lade"
    alpha: float = Field(0.1, ge=0, description="weight of the regulariser")
    penalty: float = Field(0.01, ge=0, description="lambda, on the square of its log-mean-exp")


class Seesaw(Section):
    name: Literal["seesaw"] = "seesaw"
    p: float = Field(0.8, ge=0, description="exponent of the counts' ratio; 0: no mitigation")
    q: float = Field(2.0, ge=0, description="exponent of the scores' ratio; 0: no compensation")
    smoothing: float = SMOOTHING


Criterion = named(
    CrossEntropy,
    Focal,
    ClassBalanced,
    LDAM,
    ArcFace,
    CosFace,
    BalancedSoftmax,
    LogitAdjusted,
    LADE,
    Seesaw,
)
BETWEEN_COSINES = ("ldam", "arcface", "cosface")  # criteria whose margins only cosines have


class Deferred(Section):
    weights: bool = Field(
        False, description="DRW: from start on, the criterion weighs classes by effective number"
    )
    sampling: bool = Field(False, description="DRS: from start on, the sampler is class_balanced")
    start: float = Field(0.8, ge=0, le=1, description="fraction of the training")
    beta: float = Field(0.9999, ge=0, lt=1, description=f"weights: {BETA}")

    @model_validator(mode="after")
    def _used(self):
        for key in self.changed():
            if key == "beta" and not self.weights:
                raise ValueError("beta is of the class weights; set weights=true or remove beta")
            if key == "start" and not (self.weights or self.sampling):
                raise ValueError(
                    "start says when weights or sampling begin, and both are off; switch one on "
                    "or remove start"
                )
        return self


PRIOR = "takes the class prior from the counts of the training images"
WEIGHTS = "weighs the classes by the counts of the training images"
BALANCING = {  # criteria that make classes count equally by themselves, and how
    "balanced_softmax": PRIOR,
    "logit_adjusted": PRIOR,
    "lade": PRIOR,
    "class_balanced": WEIGHTS,
}
AS_THEY_ARE = ("instance", "same", None)  # samplers that leave the classes' shares alone


def balancing(criterion) -> str | None:
    """How a criterion makes classes count equally; None: it does not, or is switched off."""
    on = all(getattr(criterion, key, 1) for key in ("tau", "beta"))  # 0: plain cross-entropy
    return BALANCING.get(criterion.name) if on else None


def balanced_by(model, train) -> str | None:
    """The first choice in these sections that makes classes count equally; None: there is none, so
    that the logits carry the prior of the training images."""
    if model.network.prior:
        return f"model.network={model.network.name}, which {model.network.prior}"
    if balancing(train.criterion):
        return f"train.criterion={train.criterion.name}"
    for key in ("sampler", "second_sampler"):
        if getattr(train, key) not in AS_THEY_ARE:
            return f"train.{key}={getattr(train, key)}"
    for key in ("weights", "sampling"):
        if getattr(train.deferred, key):
            return f"train.deferred.{key}"
    return None


class Mixing(Section):
    mixup: float = Field(0.0, ge=0, description="alpha of mixup's Beta distribution; 0: off")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix's Beta distribution; 0: off")
    manifold: float = Field(
        0.0,
        ge=0,
        description="alpha of manifold mixup's Beta distribution: images, or the input of a stage "
        "of the backbone, chosen at random in each step; 0: off",
    )
    remix: bool = Field(
        False, description="Remix: a mixed image gets the label of the much smaller class alone"
    )
    remix_ratio: float = Field(
        3.0, gt=1, description="remix: kappa, from which ratio of images a class is much smaller"
    )
    remix_share: float = Field(
        0.5, ge=0, le=1, description="remix: tau, the larger class must have less of the image"
    )
    probability: float = Field(1.0, ge=0, le=1, description="share of the steps that are mixed")
    off_epochs: int = Field(
        0, ge=0, json_schema_extra=EPOCHS, description="last epochs without mixing"
    )

    @property
    def alphas(self) -> dict[str, float]:
        """The kinds that are on, with their alpha."""
        found = {"mixup": self.mixup, "cutmix": self.cutmix, "manifold": self.manifold}
        return {kind: alpha for kind, alpha in found.items() if alpha > 0}
