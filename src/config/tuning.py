"""Keys of parameter-efficient tuning: what of a pretrained body is trained, and what is added."""

from typing import ClassVar, Literal

from pydantic import Field

from src.config.section import Section, named


class TuningSection(Section):
    adds: ClassVar[bool] = False  # weights that a network without it has no place for


class AdaptFormer(TuningSection):
    adds = True

    name: Literal["adaptformer"] = "adaptformer"
    bottleneck: int | None = Field(
        None,
        ge=1,
        description="r, width of each adapter; null: 2^floor(log2(classes / (2 blocks))), at least "
        "1: 4 for CIFAR-100, 8 for Places, 256 for iNaturalist 2018 on 12 blocks",
    )


class LoRA(TuningSection):
    adds = True

    name: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="r, of what is added to a weight matrix")
    alpha: float = Field(16.0, gt=0, description="what is added is B A alpha / rank")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="probability, of the inputs of what is added"
    )
    targets: tuple[str, ...] | None = Field(
        None,
        description="layers of the blocks by the end of their names, [attn.qkv, mlp.fc1]; null: "
        "the projections of attention, all of them",
    )


class Prompts(TuningSection):
    adds = True

    name: Literal["prompts"] = "prompts"
    number: int = Field(10, ge=1, description="of tokens, after the class token and the registers")
    deep: bool = Field(
        True,
        description="new ones before every block; false: before the first, and their outputs go on",
    )


class Bias(TuningSection):
    name: Literal["bias"] = "bias"


class LastBlocks(TuningSection):
    name: Literal["last_blocks"] = "last_blocks"
    blocks: int = Field(
        1, ge=1, description="at the end, and what comes after them; of a CNN: stages"
    )


class LayerNorm(TuningSection):
    name: Literal["layer_norm"] = "layer_norm"


Tuning = named(AdaptFormer, LoRA, Prompts, Bias, LastBlocks, LayerNorm)
