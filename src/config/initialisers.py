"""Keys of the head initialisers: what a classifier knows of its classes before it is trained."""

from typing import ClassVar, Literal

from pydantic import Field

from src.config.section import Section, named


class RandomInit(Section):
    name: Literal["random"] = "random"


class ClassMeans(Section):
    name: Literal["class_means"] = "class_means"
    scale: float = Field(
        16.0,
        gt=0,
        description="linear head: its logits are about this many times the cosine between image "
        "and class mean; a cosine head has a scale of its own",
    )


class TextInit(Section):
    text: ClassVar[bool] = True

    name: Literal["text"] = "text"
    scale: float = Field(16.0, gt=0, description="linear head: as of class_means")
    projection: Literal["auto", "clip", "fitted"] = Field(
        "auto",
        description="between names and features. clip: the image projection that timm's CLIP "
        "towers were trained with, for names by the same CLIP; fitted: by ridge regression on the "
        "class means of the training images; auto: clip where text.encoder is open_clip and the "
        "backbone has one of that width, otherwise fitted",
    )


HeadInit = named(RandomInit, ClassMeans, TextInit)
