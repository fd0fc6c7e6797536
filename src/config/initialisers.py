"""Keys of the head initialisers: what a classifier knows of its classes before it is trained."""

from typing import Literal

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


HeadInit = named(RandomInit, ClassMeans)
