"""Keys of the submission's file: its format, and what it says of images of no known class."""

from typing import Literal

from pydantic import Field, model_validator

from src.config.section import Section


class UnknownClass(Section):
    id: str = Field("-1", description="how the competition writes it: -1, new_whale, none")
    head: str | None = Field(
        None,
        description="head whose `distance` tells how far an image is from all classes; null: the "
        "first of stage2 that has one; `probability`, and where no head has one: 1 - the largest "
        "probability of the submission",
    )
    quantile: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="share of the out-of-fold images, all of known classes, that stay below the "
        "threshold; it is never fitted on test images",
    )
    probability: float = Field(
        0.5,
        gt=0,
        le=1,
        description="formats probabilities and long: of the unknown class for images above the "
        "threshold; the other classes share the rest. Below it is 0, or submission.clip",
    )
    place: int | None = Field(
        None,
        ge=2,
        description="format topk: its place among the ids of images below the threshold (above it, "
        "it is the first); null: nowhere",
    )


class Submission(Section):
    format: Literal["label", "topk", "probabilities", "long"] | None = Field(
        None,
        description="null: told from sample_submission.csv. label: one class id per image; topk: "
        "the k likeliest ids in one cell, separated by spaces; probabilities: a column per class; "
        "long: a row per image and class with a probability. Columns that are none of these are "
        "copied from the sample",
    )
    id_column: str | None = Field(None, description="with the images' ids; null: the first")
    label_column: str | None = Field(
        None, description="label, topk and long: with class ids; null: told from the sample"
    )
    value_column: str | None = Field(
        None, description="long: with probabilities; null: told from the sample"
    )
    k: int | None = Field(None, ge=1, description="topk: ids in a cell; null: as in the sample")
    prefix: str | None = Field(
        None,
        description="probabilities: what stands before the class ids in the names of the columns; "
        "null: told from the sample",
    )
    decimals: int | None = Field(
        None,
        ge=1,
        le=12,
        description="probabilities and long: round to so many, by largest remainders, so that the "
        "sum stays 1; null: eight significant digits",
    )
    clip: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="probabilities and long: smallest probability; the others are scaled so that "
        "the sum stays 1, and none is above 1 - clip. Log-loss on Kaggle is clipped at 1e-15",
    )
    gzip: bool = Field(False, description="write <name>.csv.gz")
    unknown: UnknownClass | None = Field(
        None, description="a class without training images; null: there is none"
    )

    @model_validator(mode="after")
    def _visible(self):
        if self.decimals is not None and 0 < self.clip < 10.0**-self.decimals:
            raise ValueError(
                f"clip ({self.clip}) is below what decimals ({self.decimals}) can write: it would "
                f"become 0; set decimals to null or clip to {10.0**-self.decimals} or more"
            )
        place = self.unknown and self.unknown.place
        if place and self.k and place > self.k:
            raise ValueError(f"unknown.place ({place}) must not be above k ({self.k})")
        return self
