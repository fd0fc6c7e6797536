"""Keys of 05: test logits."""

from typing import Literal

from pydantic import Field, model_validator

from src.config.section import VOLATILE, Section


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
    keep_networks: tuple[str, ...] = Field(
        (),
        description="heads (posthoc, stage1, …) whose logits are also kept network by network, in "
        "predict/networks/<network>/<head>.npz; a fold's posthoc with what 04 chose on the other "
        "folds. train.pseudo of a second round needs them. May be turned on later, in seconds",
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
