"""Keys of 04: what calibrates and fuses logits after training."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from src.config.section import Section, named

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


class JointSearch(Section):
    trials: int = Field(
        0,
        ge=0,
        le=10000,
        description="recipes that are tried of each head and fold left out, the chain's first; "
        "0: no search. A search that was stopped goes on",
    )
    seed: int = Field(0, ge=0, description="of the recipes that are tried")


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
    search: JointSearch = Field(
        default_factory=JointSearch,
        description="all steps at once instead of one after the other (Optuna's TPE), nested: what "
        "it finds replaces the chain's recipe where the section judge keeps it",
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
