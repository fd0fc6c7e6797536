"""Keys of the auxiliaries: losses beside the criterion."""

from typing import ClassVar, Literal

from pydantic import Field

from src.config.section import Section, named


class AuxiliarySection(Section):
    """What an auxiliary says of itself, as far as it differs from one that any network takes."""

    along: ClassVar[str | None] = None  # why the network's first layers must run in every step

    def check(self, model, train) -> None:
        """Errors: ValueError for choices in the sections model and train that make no sense with
        it."""


class Frequency(AuxiliarySection):
    name: Literal["frequency"] = "frequency"
    weight: float = Field(1.0, gt=0, description="factor on its loss")


class SemanticCLS(AuxiliarySection):
    text: ClassVar[bool] = True
    along = "the semantic CLS token goes with the image through every block"

    name: Literal["semantic_cls"] = "semantic_cls"
    beta: float = Field(
        0.001,
        gt=0,
        description="weight of the contrast between each image's class token and the semantic ones",
    )
    margin: float = Field(
        0.4, ge=-1, lt=1, description="cosine below which two classes are left alone"
    )
    contrast: float | None = Field(
        None,
        ge=0,
        description="weight of the contrast between images; null: 1, and none with transfg, which "
        "has its own in model.network.contrast",
    )

    def check(self, model, train) -> None:
        asked, network = "train.auxiliaries: semantic_cls", model.network
        if not network.guests:
            raise ValueError(
                f"{asked} follows one pass through one transformer, and model.network="
                f"{network.name} is none; set model.network=plain or transfg"
            )
        if model.neck is not None:
            raise ValueError(
                f"{asked} compares the class token with the semantic one, and model.neck changes "
                "the first alone; remove model.neck"
            )
        if train.mixing.alphas:
            raise ValueError(f"{asked} gives each image the name of its class, and a mixed image "
                             "has two; switch train.mixing off")  # fmt: skip
        if network.name == "transfg" and self.contrast:
            raise ValueError(
                f"{asked}.contrast: model.network=transfg contrasts images already; set "
                "model.network.contrast, and remove this one"
            )
        if train.pseudo.weight != 1 or train.pseudo.labels == "soft":
            raise ValueError(
                f"{asked} knows one class of each image and no weights; set train.pseudo.weight=1 "
                "and train.pseudo.labels=hard"
            )


Auxiliary = named(Frequency, SemanticCLS)
