"""Keys of scenes: photographs of one burst or one place that must not be split over folds."""

from typing import Literal

from pydantic import Field

from src.config.section import Section


class Scenes(Section):
    mode: Literal["auto", "always", "never"] = Field(
        "auto",
        description="images of one class that show one scene (frames of a burst) share a fold. "
        "auto: where the evidence is strong, which 01 says and the report explains; always: "
        "whatever the evidence; never: nothing is looked at",
    )
    features: Literal["pixels", "network"] = Field(
        "pixels",
        description="what likeness is measured by. pixels: 8 x 8 colours, no weights needed; "
        "network: pooled features of model.backbone with the weights of model.pretrained, slower, "
        "and more tolerant of a subject that moved; pixels where there are no weights",
    )
    ratio: float = Field(
        0.4,
        gt=0,
        lt=1,
        description="how much closer than the nearest image of another class two images of one "
        "scene are, as a share of that distance (1 - cosine); neighbours by number or time may "
        "have twice as much",
    )
