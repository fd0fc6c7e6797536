"""Keys of what follows training: calibration and fusion (04), test logits (05), ensemble (06)."""

from typing import Literal

from pydantic import Field, model_validator

from src.config.section import VOLATILE, Section


class Posthoc(Section):
    heads: tuple[str, ...] | None = Field(
        None,
        description="heads to start from: stage1 and names of stage2 heads; null: all",
    )
    steps: tuple[Literal["tau_norm", "logit_adjustment", "ncm_fusion", "temperature"], ...] = Field(
        ("tau_norm", "logit_adjustment", "ncm_fusion", "temperature"),
        description="tried in this order, on OOF logits",
    )
    tau_max: float = Field(2.0, gt=0, le=10, description="tau_norm: grid 0 … tau_max")
    grid: int = Field(21, ge=2, le=1001, description="points of each grid")
    min_gain: float = Field(
        0.0,
        ge=0,
        description="a step is kept if its cross-fitted gain, as a share of 1, is above this; "
        "temperature if its cross-fitted NLL falls",
    )

    @model_validator(mode="after")
    def _ordered(self):
        if len(set(self.steps)) < len(self.steps):
            raise ValueError(f"steps must not repeat, found {list(self.steps)}")
        if "tau_norm" in self.steps[1:]:
            raise ValueError(
                "tau_norm starts again from the weights, so it must be the first of the steps; "
                f"found {list(self.steps)}"
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


class Ensemble(Section):
    members: tuple[str, ...] = Field(
        ("posthoc",),
        description="which logits of each experiment take part: posthoc, stage1, names of heads",
    )
    weights: Literal["mean", "greedy"] = Field(
        "greedy",
        description="mean; or greedy selection with replacement on OOF, cross-fitted, which falls "
        "back to the mean when its gain is within noise",
    )
    rounds: int = Field(30, ge=1, le=1000, description="greedy: selections")
