"""Keys of 05: test logits."""

from typing import Literal

from pydantic import Field, model_validator

from src.config.section import VOLATILE, Section


class TTA(Section):
    flip: bool = Field(True, description="also the mirror image")
    vertical: bool = Field(
        False, description="also upside down; only where train.augment shows such images"
    )
    turns: bool = Field(
        False,
        description="also turned by 90, 180 and 270 degrees; only where train.augment turns images",
    )
    crops: Literal[1, 5, 10] = Field(
        1,
        description="1: centre; 5: centre and four corners; 10: those and their mirror images, as "
        "5 with flip",
    )
    scales: tuple[float, ...] = Field(
        (1.0,),
        description="factors on the size to which images are resized before the crop, which stays "
        "image_size: above 1 objects are larger and less of the image is seen",
    )
    weights: Literal["equal", "fitted"] = Field(
        "equal",
        description="of the views in the mean. fitted: by likelihood on out-of-fold images, which "
        "05 then passes through all views; kept only if the section judge does, else equal",
    )
    measure: bool = Field(
        False,
        description="also pass the out-of-fold images through all views, to know what the views "
        "are worth (predict/views.json); on by itself with weights: fitted. May be turned on later",
        json_schema_extra=VOLATILE,
    )

    @model_validator(mode="after")
    def _views(self):
        if not self.scales or min(self.scales) < 0.5 or max(self.scales) > 4:
            raise ValueError(f"scales must lie between 0.5 and 4, found {list(self.scales)}")
        if self.crops == 10 and not self.flip:
            raise ValueError("crops: 10 are five and their mirror images; set flip=true or crops=5")
        return self

    @property
    def measured(self) -> bool:
        """Whether out-of-fold images go through all views, too."""
        return self.measure or self.weights == "fitted"


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
