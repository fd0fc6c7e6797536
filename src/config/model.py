"""Keys of stage 1's network."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from src.config.initialisers import HeadInit, RandomInit
from src.config.networks import Network, Plain
from src.config.section import Section, named
from src.config.tuning import Tuning
from src.config.upgrade import NETWORKS
from src.errors import UserError

EXPERIMENT = "experiment:"  # before the name of one whose weights `pretrained` takes


class BackbonePooling(Section):
    name: Literal["backbone"] = "backbone"


class GeM(Section):
    name: Literal["gem"] = "gem"
    p: float = Field(
        3.0, ge=1, le=20, description="where the exponent starts; it is learned. 1: the mean"
    )


Pooling = named(BackbonePooling, GeM)


class Neck(Section):
    width: int = Field(512, ge=1, description="of the features that the head sees")
    norm: bool = Field(True, description="batch norm after the layer")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability, before the layer")


class Model(Section):
    gone: ClassVar[dict[str, str]] = {
        name: f"its keys stand in model.network: {{name: {name}, …}}" for name in NETWORKS
    }
    network: Network = Field(
        default_factory=Plain,
        description="how a backbone becomes logits; plain: pooled features and one head; bbn: two "
        "branches for two samplers; kt: a second head learns from class means; paco: classes and "
        "samples are contrasted at once; ride: the mean of diverse experts on shared early stages; "
        "task_separator: a gate between experts for many, medium and few images; transfg: a vision "
        "transformer whose last block sees the patches it looked at; fbsd: a CNN whose later "
        "stages do not see what earlier ones found; mmal: a CNN that sees the image, the object in "
        "it and its parts; clip: open_clip's, which compares an image with what classes are called",
    )
    backbone: str = Field(
        "resnet50",
        description="any timm model, cifar_resnet20 / 32 / 44 / 56, or an image tower of open_clip "
        "with the tag of its weights: open_clip/ViT-B-16.openai",
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of timm.create_model"
    )
    pretrained: bool | str = Field(
        True,
        description="true: timm's or open_clip's weights from the hub; false: random; a path: a "
        "local weights file; experiment:<name>: a warm start from stage 1 of another experiment "
        "(experiment:<dataset>/<name>: on another dataset), the same fold where it has it. Any "
        "network from any other on the same backbone, at any image_size; rows of the head go by "
        "class_id. What was copied, resized and left new is printed",
    )
    head: Literal["linear", "cosine", "subcentre", "label_embedding"] = Field(
        "linear",
        description="features to logits. cosine: between features and one centre per class; "
        "subcentre: and the nearest of several, for classes that look several ways; "
        "label_embedding: between projected features, which is what is trained, and the vector of "
        "the class's name (section text)",
    )
    cosine_scale: float = Field(
        16.0,
        gt=0,
        description="all heads but linear: logits lie in [-scale, scale]; LDAM's paper has 30",
    )
    centres: int = Field(3, ge=2, le=64, description="subcentre: per class")
    correct_text: bool = Field(
        False,
        description="label_embedding: train also what is added to the vectors of the names",
    )
    head_init: HeadInit = Field(
        default_factory=RandomInit,
        description="where the head starts; random: near zero, all classes equal; class_means: at "
        "the means of the pretrained features of each class's training images; text: where the "
        "names of the classes say, projected to the features",
    )
    pooling: Pooling = Field(
        default_factory=BackbonePooling,
        description="a CNN's last map to features. backbone: its own, mostly the mean; gem: the "
        "generalised mean, between mean and maximum, with a learned exponent",
    )
    neck: Neck | None = Field(
        None,
        description="a linear layer between pooled features and the head, whose output are then "
        "the features; plain networks, kt, paco, task_separator, transfg and mmal; null: none",
    )
    tuning: Tuning | None = Field(
        None,
        description="train little of the body, or little beside it, and leave the rest frozen: "
        "files then hold what was trained and name the body's hash. adaptformer: a bottleneck "
        "beside the FFN of every block (LIFT); lora: matrices of low rank beside those of "
        "attention; prompts: learned tokens; bias: biases alone; last_blocks: the last of them; "
        "layer_norm: layer norms alone. plain networks, kt, paco, transfg; null: train all of it",
    )
    anti_alias: bool = Field(
        False,
        description="blur feature maps before taking every second pixel: ResNets, EfficientNets, "
        "MobileNets and others with timm's aa_layer, and the CIFAR ResNets",
    )
    blur_kernel: Literal[3, 5] = Field(3, description="anti_alias: pixels, width of the blur")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability, before the head")
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="probability of skipping the last block, less for those before it; most of "
        "timm's. Vision transformers also take kwargs: {pos_drop_rate, attn_drop_rate, "
        "proj_drop_rate}",
    )
    image_size: int = Field(
        224, ge=8, description="pixels, height and width of the network's input"
    )
    resize: Literal["short_side", "exact"] = Field(
        "short_side",
        description="before the crop. short_side: to image_size / crop_pct, the other side in "
        "proportion; exact: the whole image to a square of that size, proportions changed",
    )
    crop_pct: float = Field(
        0.875,
        gt=0,
        le=1,
        description="evaluation, and augment.crop random: the crop's share of the resized side; "
        "448 of 600 pixels are 0.7467",
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        "bilinear", description="when resizing; null: what the backbone was pretrained with"
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="of pixels in 0..1; null: what the backbone was pretrained with"
    )
    std: tuple[float, float, float] | None = Field(
        None, description="of pixels in 0..1; null: what the backbone was pretrained with"
    )

    @model_validator(mode="after")
    def _used(self):
        changed = self.changed()
        if "blur_kernel" in changed and not self.anti_alias:
            raise ValueError("blur_kernel is of anti_alias, which is off; set anti_alias=true")
        if "cosine_scale" in changed and self.head == "linear":
            raise ValueError(
                "cosine_scale is of cosine heads; set head=cosine, subcentre or label_embedding"
            )
        if "centres" in changed and self.head != "subcentre":
            raise ValueError("centres are of the subcentre head; set head=subcentre")
        if self.correct_text and self.head != "label_embedding":
            raise ValueError("correct_text is of the label_embedding head; set head to it")
        if self.head == "label_embedding" and self.head_init.name == "class_means":
            raise ValueError(
                "head_init: class_means is a direction in the features for each class, and the "
                "label_embedding head trains a projection; set head_init=text or random"
            )
        if "aa_layer" in self.kwargs:
            raise ValueError("kwargs.aa_layer: set anti_alias=true instead")
        if self.drop_path and "drop_path_rate" in self.kwargs:
            raise ValueError("kwargs.drop_path_rate is what drop_path sets; remove one of them")
        return self

    @property
    def text(self) -> bool:
        """Whether the head looks at the label text (src/config/text.py)."""
        return self.head == "label_embedding"

    @property
    def weights_file(self) -> Path | None:
        """What `pretrained` names where it is a file, and no hub, experiment or nothing."""
        named = self.pretrained
        is_file = isinstance(named, str) and not named.startswith(EXPERIMENT)
        return Path(named) if is_file else None


def check_weights_file(path: Path | None) -> None:
    """Errors: UserError when weights that `Model.weights_file` names are missing. For before torch
    is imported, and before what is there already is compared with the config."""
    if path is not None and not path.is_file():
        raise UserError(
            f"model.pretrained: {path} is missing (working directory {Path.cwd()}). Put the "
            "weights there, or set model.pretrained=true to fetch timm's, or false"
        )
