"""Keys of 06: many logits become one."""

from typing import ClassVar, Literal

from pydantic import Field

from src.config.section import Section, named


class MeanCombiner(Section):
    name: Literal["mean"] = "mean"


class GreedyCombiner(Section):
    name: Literal["greedy"] = "greedy"
    rounds: int = Field(30, ge=1, le=1000, description="selections")


Combiner = named(MeanCombiner, GreedyCombiner)


class Ensemble(Section):
    gone: ClassVar[dict[str, str]] = {
        "weights": "it is ensemble.combiner, mean or greedy",
        "rounds": "it belongs to the combiner: ensemble.combiner: {name: greedy, rounds: 30}",
    }
    members: tuple[str, ...] = Field(
        ("posthoc",),
        description="which logits of each experiment take part: posthoc, stage1, names of heads",
    )
    combiner: Combiner = Field(
        default_factory=GreedyCombiner,
        description="how log-probabilities become one. mean: their mean; greedy: selection with "
        "replacement on OOF. Whatever is fitted is cross-fitted, and replaced by the mean where "
        "the section judge does not keep it",
    )
