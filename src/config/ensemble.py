"""Keys of 06: many logits become one."""

from typing import ClassVar, Literal

from pydantic import Field

from src.config.section import VOLATILE, Section, named


class MeanCombiner(Section):
    name: Literal["mean"] = "mean"


class GreedyCombiner(Section):
    name: Literal["greedy"] = "greedy"
    rounds: int = Field(30, ge=1, le=1000, description="selections")


class MeanProbabilityCombiner(Section):
    name: Literal["mean_probability"] = "mean_probability"


class RankMeanCombiner(Section):
    name: Literal["rank_mean"] = "rank_mean"


class ByLikelihood(Section):
    """What is fitted by likelihood on the out-of-fold images."""

    balanced: bool | None = Field(
        None,
        description="whether every class counts the same in the fit, or every image; null: classes "
        "if the metric averages over them (balanced_accuracy, macro_f1)",
    )
    shrinkage: float = Field(
        1.0, ge=0, description="of the members' weights to equal ones, in images"
    )
    iterations: int = Field(50, ge=1, le=1000, description="of L-BFGS, at most")


class SimplexCombiner(ByLikelihood):
    name: Literal["simplex"] = "simplex"
    pool: Literal["log", "linear"] = Field(
        "log", description="what is averaged: log-probabilities, or probabilities"
    )


class PerBinCombiner(ByLikelihood):
    name: Literal["per_bin"] = "per_bin"


class StackingCombiner(ByLikelihood):
    name: Literal["stacking"] = "stacking"
    bias_shrinkage: float = Field(1.0, ge=0, description="of each class's bias to 0, in images")


Combiner = named(
    MeanCombiner,
    GreedyCombiner,
    MeanProbabilityCombiner,
    RankMeanCombiner,
    SimplexCombiner,
    PerBinCombiner,
    StackingCombiner,
)


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
        "replacement on OOF; mean_probability; rank_mean: of the classes' ranks, for members on "
        "scales of their own; simplex: weights by likelihood; per_bin: the same, for each "
        "frequency bin of the class; stacking: weights and a bias per class by regression. "
        "Whatever is asked for is judged cross-fitted, and replaced by the mean where the section "
        "judge does not keep it",
    )
    fallback: Literal["keep", "best"] = Field(
        "keep",
        description="an ensemble that the section judge does not find better than its best member "
        "is said to be so. keep: it is submitted all the same; best: that member alone is",
    )
    missing_folds: Literal["refuse", "common"] = Field(
        "refuse",
        description="members whose folds are not all finished. refuse: stop, with the command that "
        "completes them; common: fit, judge and score on the folds that all members have, where "
        "each of them is out of fold; test images are combined as ever",
    )
    decision: Literal["fitted", "plain"] = Field(
        "fitted",
        description="what makes labels of the ensemble's probabilities. fitted: the rule that "
        "maximises the metric, if there is one and the section judge keeps it (expected utility "
        "for F1 and F-beta, a stretched mean for kappa, calibration for log_loss and AUC); plain: "
        "the most probable class",
    )
    label_shift: Literal["none", "em", "bbse", "match"] = Field(
        "none",
        description="the class prior of the test images. em, bbse: estimated from the predictions "
        "for them (expectation maximisation, or by the out-of-fold confusion matrix) and put in "
        "the place of the training images'; match: a bias per class under which the mean "
        "probabilities of the test images are target_prior. Judged on out-of-fold images drawn "
        "with such a prior, and done where the diagnostics are good and the section judge keeps it",
    )
    drop_one: bool = Field(
        True,
        description="also combine the members without each of them, to show what it brings; takes "
        "as many times as long as there are members",
        json_schema_extra=VOLATILE,
    )
