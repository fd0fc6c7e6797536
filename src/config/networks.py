"""Keys of the networks, and their traits: what else in a config goes with each.

A network is one section here, one file and one line in src/networks. Checks, and stages that do not
import torch, ask the section what they must know.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from src.config.losses import BETWEEN_COSINES
from src.config.section import EPOCHS, Section, named

OPEN_CLIP = "open_clip/"  # how backbones of open_clip begin
Count = Annotated[int, Field(ge=1)]
Cells = tuple[Count, Count]  # height, width


class NetworkSection(Section):
    """What a network says of itself, as far as it differs from a plain one."""

    unmixed: ClassVar[str | None] = None  # why images of a batch cannot be mixed
    weighs: ClassVar[bool] = True  # its loss knows weights of single images
    second: ClassVar[Literal["unused", "optional", "needed", "same"]] = "unused"  # second sampler
    compiles: ClassVar[bool] = True  # it trains through `forward`, which torch.compile compiles
    whole_batches: ClassVar[bool] = True  # one set of logits for all images of a batch
    unlabelled: ClassVar[str | None] = None  # why auxiliaries find no labels for the features
    prior: ClassVar[str | None] = None  # how it makes classes count equally, whatever the criterion
    one_size: ClassVar[str | None] = None  # why training images have the size of evaluation
    necks: ClassVar[bool] = False  # between pooled features and one head there is place for a neck
    untuned: ClassVar[str | None] = None  # why model.tuning can do nothing with its body
    guests: ClassVar[bool] = False  # one pass through one transformer, whose class token is f
    captions: ClassVar[bool] = False  # it starts from what classes are called, and predicts so
    # before any training
    branches: ClassVar[tuple[str, ...]] = ()  # names of its heads, where it has several

    def check(self, model, train) -> None:
        """Errors: ValueError for choices in the sections model and train that make no sense with
        it, beyond what the traits say."""


class Plain(NetworkSection):
    necks = True
    guests = True

    name: Literal["plain"] = "plain"


class BBN(NetworkSection):
    untuned = "its two branches are copies of the body's last blocks, which are to differ"
    unmixed = "it mixes the losses of two images already"
    weighs = False
    second = "needed"
    compiles = False
    whole_batches = False
    unlabelled = "the two halves of the features come from different images"

    name: Literal["bbn"] = "bbn"
    alpha: Literal["decay"] | Annotated[float, Field(ge=0, le=1)] = Field(
        "decay",
        description="weight of the conventional branch against the re-balancing one: decay from 1 "
        "to 0 with the epochs, or a fixed number from 0 to 1",
    )
    t_max: int | None = Field(
        None,
        ge=1,
        json_schema_extra=EPOCHS,
        description="decay: alpha is 1 - ((T-1) / t_max)^2 in epoch T and reaches 0 after t_max "
        "epochs; null: train.epochs. The authors take 100 for 90 epochs and 200 for 180",
    )

    @model_validator(mode="after")
    def _used(self):
        if self.t_max is not None and self.alpha != "decay":
            raise ValueError(f"t_max is of alpha: decay, and alpha is {self.alpha}; remove t_max")
        return self


class KT(NetworkSection):
    necks = True
    unmixed = "class means, and whether they are right, need images of one class"
    weighs = False
    whole_batches = False

    name: Literal["kt"] = "kt"
    phi: float = Field(
        0.2,
        ge=0,
        le=1,
        description="where class means are right: weight of the label against their soft scores",
    )
    temperature: float = Field(1.0, gt=0, description="of the soft scores; above 1 is softer")
    average: Literal["parts", "images"] = Field(
        "parts",
        description="parts: as published, the images that class means get right count together as "
        "much as those that they get wrong; images: each counts the same, which is better where "
        "few are wrong",
    )
    momentum: float = Field(
        0.1, gt=0, le=1, description="step of a class mean towards the features of a batch"
    )
    start_epoch: int = Field(
        1,
        ge=0,
        json_schema_extra=EPOCHS,
        description="epochs in which class means are only gathered and teach nothing",
    )


class PaCo(NetworkSection):
    necks = True
    unmixed = "it pulls images of one class together, and a mixed image has two"
    second = "same"

    name: Literal["paco"] = "paco"
    alpha: float = Field(
        0.01,
        ge=0,
        description="weight of each other view of the image's class as a positive; published: 0.01 "
        "for CIFAR-LT, 0.045 for ImageNet-LT",
    )
    beta: float = Field(
        1.0, gt=0, description="weight of the class itself, its row of the classifier, as one"
    )
    temperature: float = Field(
        0.05,
        gt=0,
        description="T, by which cosines of views are divided; published: 0.05 for CIFAR-LT, 0.2 "
        "for ImageNet-LT",
    )
    queue: int = Field(
        1024, ge=0, description="views of earlier batches that are kept to contrast with; 0: none"
    )
    width: int = Field(
        32,
        ge=1,
        description="of the projection in which views are contrasted; published: 32 for CIFAR-LT, "
        "128 for ImageNet-LT",
    )
    offset: float | None = Field(
        None,
        ge=0,
        description="added to the logit of every class where it is compared with samples; "
        "published: 0; null: 0 from random weights, otherwise 1 / temperature + log(beta / alpha), "
        "or classes have no share of the softmax for most of a short training",
    )

    def check(self, model, train) -> None:
        criterion = train.criterion
        if criterion.name not in ("balanced_softmax", "logit_adjusted") or criterion.smoothing:
            raise ValueError(
                "model.network=paco has a loss of its own, which takes the class prior from "
                "balanced softmax and nothing else; set train.criterion={name: balanced_softmax}, "
                "without smoothing"
            )
        if train.deferred.weights or train.deferred.sampling:
            raise ValueError(
                "train.deferred makes classes count equally late in training, and the class prior "
                "in model.network=paco does so all along; switch it off"
            )


class TaskSeparator(NetworkSection):
    untuned = "each expert is a copy of the body, which is to learn its own images"
    necks = True
    unmixed = "an expert is trained on images that belong to one bin"
    weighs = False
    second = "optional"
    compiles = False
    whole_batches = False

    name: Literal["task_separator"] = "task_separator"
    routing: Literal["hard", "soft"] = Field(
        "hard",
        description="hard: each image goes to the expert that the gate trusts most; soft: the "
        "experts' probabilities are averaged with the gate's",
    )


class RIDE(NetworkSection):
    untuned = "its experts are copies of the body's last stages, which are to differ"
    compiles = False

    name: Literal["ride"] = "ride"
    experts: int = Field(3, ge=2, le=16, description="later stages and heads on one trunk")
    diversity: float = Field(
        0.2,
        ge=0,
        le=1,
        description="lambda: reward for experts that differ from their mean; 0: none. The "
        "authors take 0.2, for CIFAR up to 0.45",
    )
    temperature: float = Field(
        1.0, gt=0, le=10, description="of the probabilities that are to differ; above 1 is softer"
    )
    width: float | None = Field(
        None,
        gt=0.5,
        le=1,
        description="share of the channels in each expert's stages. Below 1: CIFAR ResNets alone; "
        "null: 0.75 for those where they start from random weights, otherwise 1",
    )

    def check(self, model, train) -> None:
        if model.head in ("subcentre", "label_embedding"):
            raise ValueError(
                "model.network=ride predicts by the mean of linear heads, and "
                f"{model.head} is none; set model.head=cosine"
            )

    @model_validator(mode="after")
    def _bounded(self):
        if self.diversity * self.temperature > 1:
            raise ValueError(
                "diversity x temperature must be at most 1, or the loss has no lower bound; found "
                f"{self.diversity} x {self.temperature}"
            )
        return self


class TransFG(NetworkSection):
    one_size = "its position embedding is of one grid of patches"
    necks = True
    guests = True
    unmixed = "it pulls images of one class together, and a mixed image has two"
    weighs = False

    name: Literal["transfg"] = "transfg"
    stride: int = Field(
        12,
        ge=1,
        description="pixels from one patch to the next, at most the patch's size; image_size less "
        "a patch must be a multiple of it. Published: 12 for patches of 16 (448 = 16 + 36 x 12)",
    )
    contrast: float = Field(
        1.0,
        ge=0,
        description="weight of the contrast: images of one class towards cosine 1, others to "
        "margin or less; 0: none",
    )
    margin: float = Field(
        0.4, ge=-1, lt=1, description="cosine below which images of two classes are left alone"
    )
    last_block: Literal["pretrained", "random"] = Field(
        "pretrained",
        description="where the last block starts, which reads the chosen patches. random: as in "
        "the authors' code, by a slip; whatever model.pretrained holds",
    )

    def check(self, model, train) -> None:
        if "img_size" in model.kwargs:
            raise ValueError(
                "model.kwargs.img_size: model.network=transfg makes the backbone's grid for "
                "model.image_size itself; remove it"
            )
        if self.last_block == "random" and model.pretrained is False:
            raise ValueError(
                "model.network.last_block=random: with model.pretrained=false every block starts "
                "random; remove one of them"
            )


class FBSD(NetworkSection):
    untuned = "it changes the maps between the stages of a CNN, which must learn from them"
    branches = ("stage3", "stage4", "stage5", "concat")

    name: Literal["fbsd"] = "fbsd"
    stripes: tuple[Count, Count, Count] = Field(
        (8, 4, 2),
        description="into how many stripes, from top to bottom, the maps of the backbone's last "
        "three scales are cut; must divide the maps' heights (448 pixels: 56, 28, 14)",
    )
    alpha: float = Field(0.5, ge=0, description="how much the best stripes are boosted")
    beta: float = Field(
        0.5, ge=0, le=1, description="what the next scale sees of the best stripe; 1: all of it"
    )
    gamma: float = Field(
        1.0, ge=0, description="how much of what is unlike it each scale's map gets; 0: nothing"
    )
    diversity_gradient: bool = Field(
        False,
        description="the gradient follows what the maps get from each other, as published. It "
        "hardly differs where gamma is about 1, and is most of the time that they take",
    )
    top: int = Field(5, ge=1, description="largest values of each channel that are pooled")
    widths: tuple[Count, Count, Count] = Field(
        (512, 1024, 512),
        description="channels of each head: squeezed, of its map, and of what its classifier sees",
    )

    def check(self, model, train) -> None:
        if model.pooling.name != "backbone":
            raise ValueError(
                "model.network=fbsd pools the largest values of its heads' own maps, and not the "
                f"backbone's; remove model.pooling={model.pooling.name}"
            )
        if train.micro_batch == 1 and not train.freeze_batchnorm:
            raise ValueError(
                "model.network=fbsd normalises pooled features over a batch, and train.micro_batch "
                "is 1 image; set train.micro_batch=2 or more"
            )


class MMAL(NetworkSection):
    untuned = "it looks for objects in the map of a CNN, which is trained for that"
    one_size = "its windows are those of one map"
    necks = True
    compiles = False

    name: Literal["mmal"] = "mmal"
    raw_epochs: int = Field(
        1,
        ge=0,
        json_schema_extra=EPOCHS,
        description="first epochs in which it looks at the whole image alone",
    )
    windows: Literal["cub", "aircraft"] | tuple[tuple[Cells, ...], ...] = Field(
        "cub",
        description="shapes of the parts that are looked for in the map of an object. cub, "
        "aircraft: three published scales, fitted to the map; else shapes [height, width] in cells "
        "of the map, by scale: [[[2, 2], [1, 3]], [[4, 4]]]",
    )
    kept: tuple[Count, ...] | None = Field(
        None,
        description="parts kept of each scale; null: as published, [2, 3, 2] for cub, [3, 2, 1] "
        "for aircraft",
    )
    parts_at_inference: bool = Field(
        False,
        description="a third head beside raw and object, on the mean of the parts' features; every "
        "prediction then looks at the parts, too",
    )

    @property
    def branches(self) -> tuple[str, ...]:
        return ("raw", "object", "parts")[: 2 + self.parts_at_inference]

    @model_validator(mode="after")
    def _as_many(self):
        named = isinstance(self.windows, str)
        scales = 3 if named else len(self.windows)
        if not scales or not all(named or shapes for shapes in self.windows):
            raise ValueError("windows: every scale needs at least one shape [height, width]")
        published = named and self.kept is None
        if not published and len(self.kept or ()) != scales:
            raise ValueError(
                f"kept: windows has {scales} scales; give the number of parts of each, found "
                f"{self.kept and list(self.kept)}"
            )
        return self

    def check(self, model, train) -> None:
        if train.mixing.cutmix or train.mixing.manifold:
            raise ValueError(
                "model.network=mmal cuts objects and parts out of mixed images, and the share of a "
                "label must hold for each of them: train.mixing.mixup alone does that"
            )
        if self.raw_epochs >= train.epochs > 0:
            raise ValueError(
                f"model.network.raw_epochs ({self.raw_epochs}) must be below train.epochs "
                f"({train.epochs}): the object, by which mmal predicts, is looked at after them"
            )


class CLIP(NetworkSection):
    captions = True

    name: Literal["clip"] = "clip"
    tuning: Literal["classification", "contrastive"] = Field(
        "classification",
        description="classification: the classes' embeddings are a head that the criterion trains; "
        "contrastive: images and their captions, made of text.names and text.templates, find each "
        "other in a batch. Both start as the zero-shot classifier, and train.epochs=0 stays it",
    )
    text_tower: Literal["trained", "frozen"] = Field(
        "trained", description="contrastive; frozen: captions are embedded once"
    )
    targets: Literal["classes", "diagonal"] = Field(
        "classes",
        description="contrastive: what belongs together in a batch. classes: an image and all "
        "captions of its class; diagonal: and its own alone, as published",
    )
    scale: Literal["learned", "fixed"] = Field(
        "learned",
        description="of the cosines. learned: from what the weights come with, at most max_scale; "
        "fixed: model.cosine_scale, of which 25 to 30 suits criteria that know the class prior",
    )
    max_scale: float = Field(100.0, gt=1, le=1000, description="upper bound of a learned scale")

    @property
    def unmixed(self) -> str | None:
        mixable = self.tuning == "classification"
        return None if mixable else "a mixed image has two captions"

    @property
    def weighs(self) -> bool:
        return self.tuning == "classification"

    def check(self, model, train) -> None:
        if not model.backbone.startswith(OPEN_CLIP):
            raise ValueError(
                "model.network=clip needs both towers of a CLIP: set model.backbone="
                f"{OPEN_CLIP}ViT-B-16.openai or another of open_clip's; found {model.backbone}"
            )
        if model.head != "cosine":
            raise ValueError(
                f"model.network=clip compares by cosine: set model.head=cosine, found {model.head}"
            )
        if self.scale == "learned" and "cosine_scale" in model.changed():
            raise ValueError(
                "model.cosine_scale is a fixed scale, and model.network.scale=learned starts from "
                "that of the weights; remove it, or set model.network.scale=fixed"
            )
        if self.scale == "learned" and train.criterion.name in BETWEEN_COSINES:
            raise ValueError(
                f"train.criterion {train.criterion.name} has margins for one scale; set "
                "model.network.scale=fixed and model.cosine_scale"
            )
        if self.tuning == "contrastive":
            self._check_contrastive(model, train)

    def _check_contrastive(self, model, train) -> None:
        asked = "model.network.tuning=contrastive"
        deferred = train.deferred.weights
        if train.criterion.name != "cross_entropy" or train.criterion.changed() or deferred:
            what = "deferred.weights" if deferred else "criterion"
            raise ValueError(
                f"train.{what}: {asked} has a loss of its own, between images and captions; remove "
                "it, or set model.network.tuning=classification"
            )
        if str(model.pretrained).startswith("experiment:"):
            raise ValueError(
                f"model.pretrained={model.pretrained}: no experiment keeps the text tower that "
                f"{asked} needs; start from a tag or a file of open_clip's"
            )
        if model.head_init.name != "random":
            raise ValueError(
                f"model.head_init={model.head_init.name}: with {asked} the head is what the text "
                "tower says; remove it"
            )

    @model_validator(mode="after")
    def _used(self):
        for key in ("text_tower", "targets"):
            if key in self.changed() and self.tuning != "contrastive":
                raise ValueError(f"{key} is of tuning: contrastive, and it is {self.tuning}")
        if "max_scale" in self.changed() and self.scale == "fixed":
            raise ValueError("max_scale is of scale: learned, and it is fixed")
        return self


Network = named(Plain, BBN, KT, PaCo, RIDE, TaskSeparator, TransFG, FBSD, MMAL, CLIP)
