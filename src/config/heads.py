"""The keys of stage 2: one section per head, told apart by `head`."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from src.config.initialisers import ClassMeans, HeadInit, RandomInit, TextInit
from src.config.losses import Sampler
from src.config.section import Section, named

NAME = "directory under stage2/; null: the head's kind"
PASSES = 30  # where epochs are null, at least
LR = "peak learning rate of SGD, cosine to 0"
INIT = "where the head starts: random, near zero; class_means, at the means of each class's "
INIT += "features; or text, where the names of the classes say"
SCALE = "logits lie in [-scale, scale]"


def _epochs(enough: int) -> str:
    return f"passes of N features; null: {PASSES}, or as many as make {enough} steps"


class AnyHead(Section):
    """What all heads have in common."""

    head: str
    name: str | None = Field(None, pattern=r"^[\w.+-]+$", description=NAME)

    @property
    def title(self) -> str:
        """The head's name everywhere: its directory, its column, what others call it by."""
        return self.name or self.head


class Trained(AnyHead):
    """What heads that are trained on features have in common.

    enough: optimizer steps that epochs of null make at least, however few features there are. The
    scales of LWS need hundreds; cRT on 9,925 features did worse with 1,000 than with 570. A
    number of epochs is taken at its word.
    """

    enough: ClassVar[int] = 500

    sampler: Sampler = Field("class_balanced", description="which features an epoch sees")
    sampler_power: float = Field(
        0.5, ge=-2, le=2, description="sampler power: classes by their images to this power"
    )
    views: int = Field(
        0,
        ge=0,
        le=64,
        description="augmented views of each training image to cache and train on; 0: the "
        "evaluation view alone",
    )
    epochs: int | None = Field(None, ge=1, description=_epochs(enough))
    batch_size: int = Field(512, ge=2, description="features per step")
    lr: float = Field(0.1, gt=0, description=LR)
    weight_decay: float = Field(5e-4, ge=0, description="on everything that is trained")

    @model_validator(mode="after")
    def _powered(self):
        if "sampler_power" in self.changed() and self.sampler != "power":
            raise ValueError("sampler_power is used by the sampler `power` alone")
        return self

    def passes(self, steps: int) -> int:
        """Epochs of `steps` optimizer steps each: those asked for, or enough of them."""
        return max(PASSES, -(-self.enough // steps)) if self.epochs is None else self.epochs


class Switched(Trained):
    """Heads whose training can also move the statistics of the backbone's batch norm, as their
    authors' code does. The others start from the features as they are: from their class means, or
    from the norms of the weights that stage 1 gave them."""

    bn: Literal["frozen", "train"] = Field(
        "frozen",
        description="batch norm of the backbone. frozen: as stage 1 left it, seconds; train: its "
        "statistics follow the sampler, so the backbone runs on every image of every epoch, and "
        f"once more in 05; minutes, so that epochs of null are {PASSES} and no more",
    )

    @model_validator(mode="after")
    def _live(self):
        if self.bn == "train" and self.views:
            raise ValueError("bn: train draws new views in every epoch; remove views")
        return self

    def passes(self, steps: int) -> int:
        """Each is a pass of the backbone with bn: train, so nothing makes more of them."""
        if self.epochs is None and self.bn == "train":
            return PASSES
        return super().passes(steps)


class CRT(Switched):
    head: Literal["crt"] = "crt"
    init: HeadInit = Field(default_factory=RandomInit, description=INIT)
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    adapter: int = Field(
        0,
        ge=0,
        description="rank of a trained linear layer between the features and the head, which "
        "starts as the identity; 0: none",
    )
    frequency_weight: float = Field(
        0.0,
        ge=0,
        description="weight of a second head's loss, which tells the bin of the class; it acts "
        "on the class head through the adapter alone; 0: none",
    )

    @model_validator(mode="after")
    def _consistent(self):
        if self.bn == "train" and self.init.name != "random":
            raise ValueError(
                f"init: {self.init.name} looks at cached features, and bn: train has none; remove "
                "one of them"
            )
        if self.frequency_weight and not self.adapter:
            raise ValueError(
                "frequency_weight: on frozen features two linear heads share nothing, so the "
                "second cannot change the first; set adapter, for example to 64"
            )
        return self


class LWS(Switched):
    head: Literal["lws"] = "lws"
    epochs: int | None = Field(
        None, ge=0, description=f"{_epochs(Trained.enough)}; 0: stage 1's classifier as it is"
    )


class MaxNorm(Trained):
    enough: ClassVar[int] = 300  # the ball and the weight decay stop it early

    head: Literal["maxnorm"] = "maxnorm"
    sampler: Sampler = Field(
        "instance", description="which features an epoch sees; the loss balances the classes"
    )
    loss: Literal["cb_ce", "cb_softmax_bce"] = Field(
        "cb_ce",
        description="with class-balanced weights: cross-entropy, or the publication's binary "
        "cross-entropy of the softmax, whose gradients are about K times smaller",
    )
    beta: float = Field(
        0.9999, ge=0, lt=1, description="class-balanced weights (1 - beta) / (1 - beta^N_c)"
    )
    ratio: float = Field(
        0.1,
        ge=0,
        le=1,
        description="largest norm of a class's weights, between the smallest (0) and the largest "
        "(1) of stage 1",
    )
    epochs: int | None = Field(None, ge=1, description=_epochs(enough))
    batch_size: int = Field(64, ge=2, description="features per step")
    lr: float = Field(0.01, gt=0, description=LR)
    weight_decay: float = Field(0.1, ge=0, description="on the weights and the bias")

    @model_validator(mode="after")
    def _consistent(self):
        if self.beta and self.sampler != "instance":
            raise ValueError(
                f"the loss of maxnorm weighs the classes, and sampler={self.sampler} balances them "
                "once more; set sampler=instance, or beta=0"
            )
        return self


class CosineHead(Trained):
    enough: ClassVar[int] = 100  # further from the class means it learns the images by heart

    head: Literal["cosine"] = "cosine"
    epochs: int | None = Field(None, ge=0, description=f"{_epochs(enough)}; 0: NCM with a scale")
    scale: float = Field(16.0, gt=0, description=SCALE)
    init: HeadInit = Field(default_factory=ClassMeans, description=INIT)
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")


class LabelEmbedding(Trained):
    text: ClassVar[bool] = True

    head: Literal["label_embedding"] = "label_embedding"
    scale: float = Field(16.0, gt=0, description=SCALE)
    init: named(RandomInit, TextInit) = Field(
        default_factory=TextInit,
        description="where the projection starts: random, or text: at the regression of the head "
        "`text`",
    )
    correct: bool = Field(False, description="train also what is added to the names' vectors")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")


class TextSimilarity(AnyHead):
    text: ClassVar[bool] = True

    head: Literal["text"] = "text"
    views: int = Field(0, ge=0, le=64, description="augmented views to regress; 0: the plain one")
    ridge: float = Field(
        1.0,
        gt=0,
        description="of the regression from features to the names' vectors, in units of the "
        "features' mean variance",
    )
    scale: float = Field(16.0, gt=0, description=SCALE)


class NCM(AnyHead):
    head: Literal["ncm"] = "ncm"
    views: int = Field(0, ge=0, le=64, description="augmented views to average; 0: the plain one")
    features: Literal["un", "l2n", "cl2n"] = Field(
        "l2n",
        description="un: as they are; l2n: divided by their norm; cl2n: minus their mean over "
        "all training images, then divided by their norm",
    )
    distance: Literal["cosine", "l2", "dot"] = Field(
        "cosine",
        description="logits: the cosine to the mean, minus the squared Euclidean distance to it "
        "(l2), or the dot product with it, which prefers classes whose images agree",
    )


class KNN(AnyHead):
    head: Literal["knn"] = "knn"
    views: int = Field(
        0, ge=0, le=64, description="augmented views that are neighbours, too; 0: the plain one"
    )
    k: int = Field(20, ge=1, le=10_000, description="neighbours that vote")
    temperature: float = Field(
        0.07, gt=0, description="a vote weighs exp(cosine / temperature); small: the nearest alone"
    )
    balanced: bool = Field(True, description="divide the votes of a class by its training images")
    smoothing: float = Field(
        0.1, gt=0, lt=1, description="share of the probability that all classes have in any case"
    )


Head = named(CRT, LWS, MaxNorm, CosineHead, LabelEmbedding, TextSimilarity, NCM, KNN, by="head")
