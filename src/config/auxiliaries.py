"""Keys of the auxiliaries: losses beside the criterion."""

from typing import Literal

from pydantic import Field

from src.config.section import Section, named


class Frequency(Section):
    name: Literal["frequency"] = "frequency"
    weight: float = Field(1.0, gt=0, description="factor on its loss")


Auxiliary = named(Frequency)
