"""Keys of 04: what calibrates and fuses logits after training."""

import difflib
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from src.config.names import matching
from src.config.section import Section, named
from src.errors import some

GRID = "points of the grid"
TAU_MAX = "grid 0 … tau_max"
SCALER = (
    "The other head's logits: minmax: mapped onto the range of the start head's, per image; eta: "
    "times the ratio of their maxima; none: as they are"
)
BIAS = "dropped: f · w_c alone; kept: the head's bias is added, as it is"
Bias = Literal["dropped", "kept"]
OTHER = "the head or branch beside the start head; null: the one of kind ncm, of the same branch"
Shrinkage = Annotated[float, Field(gt=0, le=1e6)]
Scaler = Literal["minmax", "eta", "none"]


class AnyStep(Section):
    """What all post-hoc steps have in common."""

    restarts: ClassVar[bool] = False  # starts again from the head's weights, so it must be first

    @property
    def others(self) -> tuple[str, ...]:
        """Heads beside the start head that the config names."""
        return ()


class TauNorm(AnyStep):
    restarts: ClassVar[bool] = True
    name: Literal["tau_norm"] = "tau_norm"
    tau_max: float = Field(
        2.0, gt=0, le=10, description=f"{TAU_MAX}; tau_max 1 with grid 2 is L2-normalisation"
    )
    grid: int = Field(21, ge=2, le=1001, description=GRID)
    bias: Bias = Field("dropped", description=BIAS)


class MaxNorm(AnyStep):
    restarts: ClassVar[bool] = True
    name: Literal["max_norm"] = "max_norm"
    grid: int = Field(
        11,
        ge=2,
        le=1001,
        description="points of the grid of ratios 0 … 1: the largest norm of a class's weights, "
        "between the smallest and the largest of the head",
    )
    bias: Bias = Field("kept", description=BIAS)


class LogitAdjustment(AnyStep):
    name: Literal["logit_adjustment"] = "logit_adjustment"
    tau_max: float = Field(2.0, gt=0, le=10, description=TAU_MAX)
    grid: int = Field(21, ge=2, le=1001, description=GRID)


class Fusion(AnyStep):
    name: Literal["fusion"] = "fusion"
    heads: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="heads and branches to fuse the start head with, each on its own: stage1, "
        "stage1@<branch>, names of stage2 heads; null: those of kind ncm",
    )
    scalers: tuple[Scaler, ...] = Field(
        ("minmax", "eta", "none"), min_length=1, description=f"searched. {SCALER}"
    )
    operators: tuple[Literal["sum", "softmax_sum", "max", "convex", "softmax_convex"], ...] = Field(
        ("sum", "softmax_sum", "max", "convex"),
        min_length=1,
        description="searched. sum: of logits; softmax_sum: of probabilities; max: the larger "
        "logit of each class; convex and softmax_convex: w and 1 - w of each",
    )
    grid: int = Field(21, ge=2, le=1001, description="weights w of the convex operators, 0 … 1")

    @property
    def others(self):
        return self.heads or ()


class NCMFusion(AnyStep):
    """What `fusion` is with these keys."""

    heads: ClassVar[None] = None
    scalers: ClassVar[tuple[str, ...]] = ("minmax",)
    operators: ClassVar[tuple[str, ...]] = ("convex",)

    name: Literal["ncm_fusion"] = "ncm_fusion"
    grid: int = Field(21, ge=2, le=1001, description=GRID)


class Shrunk(AnyStep):
    """Steps that fit something for each class."""

    shrinkage: tuple[Shrinkage, ...] = Field(
        (1.0, 10.0, 100.0),
        min_length=1,
        description="towards leaving the logits as they are, in images that say so: the one of "
        "these that does best on folds left out, or the largest where there is but one fold",
    )
    balanced: bool = Field(True, description="classes count equally in the fit, else images")


class ClassScales(Shrunk):
    name: Literal["class_scales"] = "class_scales"


class LLW(Shrunk):
    name: Literal["llw"] = "llw"
    head: str | None = Field(None, description=OTHER)
    scaler: Scaler = Field("minmax", description=SCALER)

    @property
    def others(self):
        return () if self.head is None else (self.head,)


class ASM(AnyStep):
    name: Literal["asm"] = "asm"
    head: str | None = Field(None, description=OTHER)
    routing: Literal["hard", "soft"] = Field(
        "hard",
        description="hard: an image's logits are those of the head believed; soft: the "
        "probabilities of both are mixed",
    )
    features: bool = Field(
        True, description="also look at features, where that helps on folds left out"
    )
    offset: float | None = Field(
        None,
        description="log odds above which the other head is believed; 0 is the publication's; "
        "null: what does best on folds left out",
    )
    weight_decay: float = Field(0.1, ge=0, description="on the network's weights")
    seed: int = Field(0, ge=0, description="of the network's start and batches")

    @property
    def others(self):
        return () if self.head is None else (self.head,)


class MetadataPrior(AnyStep):
    name: Literal["metadata_prior"] = "metadata_prior"
    columns: tuple[str, ...] | None = Field(
        None, min_length=1, description="of data.columns, whose values tell of the class; null: all"
    )


class Temperature(AnyStep):
    name: Literal["temperature"] = "temperature"


class BinTemperature(AnyStep):
    name: Literal["bin_temperature"] = "bin_temperature"
    shrinkage: float = Field(
        10.0, ge=0, description="nats that hold a bin's temperature, per squared logarithm"
    )


class VectorScaling(AnyStep):
    name: Literal["vector_scaling"] = "vector_scaling"
    shrinkage: float = Field(
        10.0, ge=0, description="of each class's scale and bias to temperature scaling, in images"
    )
    iterations: int = Field(25, ge=1, le=1000, description="of L-BFGS, at most")


PosthocStep = named(
    TauNorm,
    MaxNorm,
    ClassScales,
    LogitAdjustment,
    Fusion,
    NCMFusion,
    LLW,
    ASM,
    MetadataPrior,
    Temperature,
    BinTemperature,
    VectorScaling,
)


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


def check_heads(posthoc: Posthoc, names: list[str]) -> None:
    """Errors: ValueError for heads that there are not, and for a start head that would stand beside
    itself. names: of all heads"""
    for known in posthoc.heads or ():
        if known not in names:
            raise ValueError(f"posthoc.heads names {known!r}, but there are only {names}")
    for step in posthoc.steps:
        for asked in step.others:
            if not matching(asked, names):
                near = difflib.get_close_matches(asked, names, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"the step {step.name} of posthoc.steps names the head {asked!r}, but there "
                    f"are only {names}{hint}"
                )
        found = {name for asked in step.others for name in matching(asked, names)}
        if found and found == set(posthoc.heads or ()) and len(found) == 1:
            raise ValueError(
                f"the step {step.name} of posthoc.steps would fuse {found.pop()!r}, the only one "
                "of posthoc.heads, with itself; name another head in one of them"
            )


def check_columns(posthoc: Posthoc, carried: tuple[str, ...]) -> None:
    """Errors: ValueError for columns that data.columns (`carried`) does not name."""
    for step in posthoc.steps:
        if step.name != "metadata_prior":
            continue
        if not carried:
            raise ValueError(
                "posthoc.steps: metadata_prior reads columns beside the images, and data.columns "
                "names none; name them there and run 01 again"
            )
        if lacking := sorted(set(step.columns or ()) - set(carried)):
            raise ValueError(
                f"posthoc.steps: metadata_prior names the columns {some(lacking)}, but "
                f"data.columns names {list(carried)}; correct one of them"
            )
