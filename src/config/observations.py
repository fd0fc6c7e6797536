"""Keys of observations: several images of one specimen, which data.observation names."""

from typing import Literal

from pydantic import Field

from src.config.section import Section


class Observations(Section):
    pool: Literal["mean", "max", "attention"] = Field(
        "mean",
        description="how the images of one observation share a prediction: the mean of their "
        "log-probabilities, the largest of each class, or a mean in which sure images count more",
    )
    confidence: Literal["max", "entropy"] = Field(
        "max",
        description="attention: what makes an image sure: its largest log-probability, or its "
        "negative entropy in nats",
    )
    strength: float | None = Field(
        1.0,
        ge=0,
        le=100,
        description="attention: factor on the confidence before the softmax over an observation's "
        "images; 0 is the mean. null: fitted on out-of-fold images, kept if the section judge does",
    )

    @property
    def fitted(self) -> bool:
        return self.pool == "attention" and self.strength is None
