"""The keys of the searches for settings: `02_train_stage1.py --search`, and 03 alike."""

from typing import Literal

from pydantic import Field, model_validator

from src.config.metric import MetricName
from src.config.section import Section

Choice = int | float | bool | str | None


class Range(Section):
    """From low to high, whole numbers where the key takes whole numbers; or one of several."""

    low: int | float | None = Field(None, description="smallest value")
    high: int | float | None = Field(None, description="largest value")
    log: bool = Field(False, description="search the logarithm: for values that span decades")
    choices: tuple[Choice, ...] | None = Field(None, description="one of these, instead of a range")

    @model_validator(mode="after")
    def _consistent(self):
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("give either low and high, or choices")
            if len(set(self.choices)) < 2 or len(set(self.choices)) < len(self.choices):
                raise ValueError(f"choices must be two or more, all different: {self.choices}")
        elif self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        elif self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        elif self.log and self.low <= 0:
            raise ValueError(f"log: low must be above 0, found {self.low}")
        return self

    @property
    def ends(self) -> tuple[Choice, ...]:
        """The values that every other one lies between, or all of them."""
        return (self.low, self.high) if self.choices is None else self.choices


def _weight_decay() -> dict[str, Range]:
    return {"train.weight_decay": Range(low=1e-5, high=1e-1, log=True)}


HEAD_RANGES = {
    "weight_decay": Range(low=1e-4, high=1.0, log=True),
    "ratio": Range(low=0.0, high=1.0),
}


class HeadSearch(Section):
    keys: dict[str, Range] | None = Field(
        None,
        description="<head>.<key>, heads by name, and where to search it, as above; null: of every "
        "trained head the weight decay from 1e-4 to 1, and of maxnorm also the ratio",
    )
    trials: int = Field(100, ge=1, le=10000, description="of each head, over all workers")
    use: bool = Field(True, description="03 fits heads with the winners that it finished finding")


class Search(Section):
    keys: dict[str, Range] = Field(
        default_factory=_weight_decay,
        description="keys of model and train and where to search them: {low, high, log} or "
        "{choices: [a, b]}",
    )
    trials: int = Field(12, ge=1, le=10000, description="trainings, over all workers")
    epochs: int | None = Field(
        None, ge=1, description="of each trial; null: train.epochs. Warm-up shrinks with it"
    )
    fold: int = Field(
        0,
        ge=0,
        description="whose training images are used; its own never are. In stage 2 they judge the "
        "winner",
    )
    holdout: float = Field(
        0.2, gt=0, lt=0.9, description="share of each class that a trial is scored on"
    )
    metric: MetricName | None = Field(
        None, description="what the winner has most of; null: the competition's metric"
    )
    pruner: Literal["median", "none"] = Field(
        "median",
        description="median: stop a trial that is, after a third of its epochs, below the median "
        "of the earlier ones; trials are then validated after each epoch",
    )
    seed: int = Field(0, ge=0, description="of the inner split and of the values that are tried")
    use: bool = Field(True, description="02 trains with the winner once the search has finished")
    stage2: HeadSearch = Field(
        default_factory=HeadSearch,
        description="03 --search: settings of the heads, on cached features, with fold, metric and "
        "seed as above",
    )
