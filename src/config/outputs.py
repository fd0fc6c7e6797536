"""Keys of what follows training: calibration and fusion (04), test logits (05), ensemble (06)."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from src.config.section import VOLATILE, Section, named

GRID = "points of the grid"
TAU_MAX = "grid 0 … tau_max"


class AnyStep(Section):
    """What all post-hoc steps have in common."""

    restarts: ClassVar[bool] = False  # starts again from the head's weights, so it must be first


class TauNorm(AnyStep):
    restarts: ClassVar[bool] = True
    name: Literal["tau_norm"] = "tau_norm"
    tau_max: float = Field(2.0, gt=0, le=10, description=TAU_MAX)
    grid: int = Field(21, ge=2, le=1001, description=GRID)


class LogitAdjustment(AnyStep):
    name: Literal["logit_adjustment"] = "logit_adjustment"
    tau_max: float = Field(2.0, gt=0, le=10, description=TAU_MAX)
    grid: int = Field(21, ge=2, le=1001, description=GRID)


class NCMFusion(AnyStep):
    name: Literal["ncm_fusion"] = "ncm_fusion"
    grid: int = Field(21, ge=2, le=1001, description=GRID)


class Temperature(AnyStep):
    name: Literal["temperature"] = "temperature"


PosthocStep = named(TauNorm, LogitAdjustment, NCMFusion, Temperature)


class Posthoc(Section):
    gone: ClassVar[dict[str, str]] = {
        "tau_max": "it belongs to a step, as in posthoc.steps: [{name: tau_norm, tau_max: 2.0}]",
        "grid": "it belongs to a step, as in posthoc.steps: [{name: tau_norm, grid: 21}]",
        "min_gain": "it is judge.min_gain, for 04 and 06 alike",
    }
    heads: tuple[str, ...] | None = Field(
        None,
        description="heads to start from: stage1 and names of stage2 heads; null: all",
    )
    steps: tuple[PosthocStep, ...] = Field(
        (TauNorm(), LogitAdjustment(), NCMFusion(), Temperature()),
        description="tried in this order, on OOF logits; `tau_norm` is short for {name: tau_norm}",
    )

    @model_validator(mode="after")
    def _ordered(self):
        names = [step.name for step in self.steps]
        if len(set(names)) < len(names):
            raise ValueError(f"steps must not repeat, found {names}")
        for step in self.steps[1:]:
            if step.restarts:
                raise ValueError(
                    f"{step.name} starts again from the weights, so it must be the first of the "
                    f"steps; found {names}"
                )
        return self


class TTA(Section):
    flip: bool = Field(True, description="also the mirror image")
    crops: Literal[1, 5] = Field(1, description="1: centre; 5: centre and four corners")
    scales: tuple[float, ...] = Field(
        (1.0,), description="factors on the size to which images are resized before the crop"
    )

    @model_validator(mode="after")
    def _scales(self):
        if not self.scales or min(self.scales) < 0.5 or max(self.scales) > 4:
            raise ValueError(f"scales must lie between 0.5 and 4, found {list(self.scales)}")
        return self


class Predict(Section):
    tta: TTA = Field(default_factory=TTA, description="test-time augmentation: views per image")
    keep_views: bool = Field(
        False,
        description="also keep the logits and features of each network and view, in "
        "predict/views/<network>/view<i>.npz. May be turned on later: only the views are then made",
        json_schema_extra=VOLATILE,
    )
    evidence: int = Field(
        8,
        ge=0,
        le=64,
        description="images of each bin and kind (right, wrong, confident and wrong; of the test "
        "images the most and the least confident) for which 05 keeps, in predict/evidence/, what "
        "the network looked at; the report shows them. 0: none",
        json_schema_extra=VOLATILE,
    )


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


class Judge(Section):
    standard_errors: float = Field(
        1.0,
        ge=0,
        le=10,
        description="what is fitted after training (a step of 04, the combiner of 06) is kept if "
        "its cross-fitted gain is above so many standard errors of that gain: paired bootstrap "
        "over the out-of-fold images, 200 draws. Intervals that are shown are 95 %, 1.96 of them",
    )
    min_gain: float = Field(
        0.0,
        ge=0,
        description="and above this: a share of 1, in nats for what is scored by NLL (temperature)",
    )
