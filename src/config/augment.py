"""Keys of what training does to single images."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from src.config.section import Section, named


class ColorJitter(Section):
    brightness: float = Field(0.2, ge=0, le=1, description="relative change, up to")
    contrast: float = Field(0.2, ge=0, le=1, description="relative change, up to")
    saturation: float = Field(0.2, ge=0, le=1, description="relative change, up to")
    hue: float = Field(0.0, ge=0, le=0.5, description="up to this share of the colour circle")
    p: float = Field(0.8, ge=0, le=1, description="probability of doing so; published: mostly 1")

    @property
    def on(self) -> bool:
        return self.p > 0 and any((self.brightness, self.contrast, self.saturation, self.hue))


def _all_alike(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return dict.fromkeys(("brightness", "contrast", "saturation"), value) if number else value


class NoPolicy(Section):
    name: Literal["none"] = "none"


class RandAugment(Section):
    name: Literal["randaugment"] = "randaugment"
    n: int = Field(2, ge=1, le=10, description="operations, one after the other")
    m: int = Field(9, ge=0, le=30, description="magnitude of all of them; 30 is the strongest")


class TrivialAugment(Section):
    name: Literal["trivialaugment"] = "trivialaugment"


class AutoAugment(Section):
    name: Literal["autoaugment"] = "autoaugment"
    learned_on: Literal["imagenet", "cifar10", "svhn"] = Field(
        "imagenet", description="the data set for which its 25 pairs of operations were found"
    )


Policy = named(NoPolicy, RandAugment, TrivialAugment, AutoAugment)


def _named_transform(value: Any) -> Any:
    """`GaussNoise` for `{name: GaussNoise}`. Errors: ValueError where there is no name."""
    value = {"name": value} if isinstance(value, str) else value
    if isinstance(value, dict) and not isinstance(value.get("name"), str):
        raise ValueError(
            f"a transform of albumentations has a name, found {value}; write for example "
            "{name: GaussNoise, std_range: [0.1, 0.2], p: 0.3}"
        )
    return value


Named = Annotated[dict[str, Any], BeforeValidator(_named_transform)]


class Augment(Section):
    crop: Literal["random_resized", "random", "padded", "none"] = Field(
        "random_resized",
        description="random_resized: a random part of the image; random: image_size pixels of the "
        "image, resized as in evaluation; padded: the whole image, shifted by up to 1/8 (the CIFAR "
        "recipe); none: as in evaluation",
    )
    scale: tuple[float, float] = Field(
        (0.35, 1.0), description="random_resized: share of the image's area, from 0 to 1"
    )
    padding: int = Field(
        0, ge=0, description="random: pixels of black around the resized image, before the crop"
    )
    hflip: bool = Field(True, description="mirror left-right half of the time")
    vflip: bool = Field(False, description="mirror up-down half of the time")
    rotate: float = Field(0.0, ge=0, le=180, description="up to this many degrees either way")
    color_jitter: Annotated[ColorJitter, BeforeValidator(_all_alike)] = Field(
        default_factory=ColorJitter,
        description="of brightness, contrast, saturation and hue, in random order; a number is "
        "short for the first three alike, 0 for none",
    )
    policy: Policy = Field(
        default_factory=NoPolicy,
        description="operations on geometry and colours, drawn anew for each image, after crop, "
        "flips and rotation. randaugment: n of 14, all of magnitude m; trivialaugment: one of 14, "
        "of any magnitude; autoaugment: a learned pair. All change colours by themselves: set "
        "color_jitter to 0 beside them, as published",
    )
    extra: tuple[Named, ...] = Field(
        (),
        description="any transforms of albumentations 2.0.8, in this order, after all of the above "
        "and before erase: {name: GaussNoise, std_range: [0.1, 0.2], p: 0.3}; OneOf and its "
        "siblings take a list of them as `transforms`. They must keep the image's size",
    )
    erase: float = Field(0.0, ge=0, le=1, description="probability of erasing a random rectangle")

    @model_validator(mode="after")
    def _ordered(self):
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale must be 0 < low <= high <= 1, found {self.scale}")
        if self.padding and self.crop != "random":
            raise ValueError(
                f"padding is around what crop: random crops from, and crop is {self.crop}; "
                "set crop: random or remove padding"
            )
        return self

    @property
    def beyond_moves(self) -> list[str]:
        """What it does to an image beside shifting and mirroring it, in the keys' words."""
        others = self._others
        return others if self.crop == "padded" else [f"crop {self.crop}", *others]

    @property
    def chance(self) -> list[str]:
        """What may be done to an image in one epoch and not in another, in the keys' words."""
        found = [] if self.crop == "none" else [f"crop {self.crop}"]
        return [*found, *(key for key in ("hflip", "vflip") if getattr(self, key)), *self._others]

    @property
    def _others(self) -> list[str]:
        others = [key for key in ("rotate", "erase") if getattr(self, key)]
        others += ["color_jitter"] if self.color_jitter.on else []
        others += ["policy"] if self.policy.name != "none" else []
        return others + (["extra"] if self.extra else [])
