"""Keys of distillation: stage 1 also learns from what other experiments say of its images."""

from typing import Literal

from pydantic import Field, model_validator

from src.config.losses import BETA
from src.config.names import STAGE1
from src.config.section import Section


class Distill(Section):
    experiment: str | tuple[str, ...] | None = Field(
        None,
        description="teachers: finished experiments of the same dataset, one or a list, with a "
        "larger body, other views or other losses. birds_lt means its network's own logits, "
        "birds_lt/crt those of a head of stage 2, birds_lt/posthoc those behind 04's steps. A "
        "fold is taught by the same fold's networks alone, which have not seen what it holds out. "
        "Several: the mean of their logits. null: no teacher",
    )
    temperature: float = Field(
        2.0, gt=0, description="divides the logits of both; above 1 shows more of the unlikely"
    )
    weight: float = Field(
        0.5, gt=0, le=1, description="of the teachers in the loss; the labels have the rest"
    )
    balance: Literal["none", "prior", "weights"] = Field(
        "none",
        description="none: targets as the teachers have them. For teachers whose logits carry the "
        "class prior of the training images: prior takes it out of them, weights makes rare "
        "classes count more in each target, by effective number",
    )
    tau: float = Field(1.0, gt=0, description="prior: how much of it is taken out")
    beta: float = Field(0.9999, ge=0, lt=1, description=f"weights: {BETA}")
    views: Literal["fixed", "same"] = Field(
        "fixed",
        description="what the teachers look at. fixed: each image once, as in evaluation, before "
        "training begins. same: in every step the very images that the network learns from, "
        "augmented and mixed, which costs a forward pass of every teacher",
    )

    @property
    def teachers(self) -> tuple[str, ...]:
        """As named in `experiment`; none: nothing is distilled."""
        names = self.experiment or ()
        return (names,) if isinstance(names, str) else names

    @model_validator(mode="after")
    def _used(self):
        if len(set(map(teacher_of, self.teachers))) < len(self.teachers):
            raise ValueError(f"experiment: each can teach once, found {list(self.teachers)}")
        if not self.teachers and self.changed():
            raise ValueError(
                f"{', '.join(self.changed())}: of distillation; name its teachers in experiment"
            )
        for key, balance in (("tau", "prior"), ("beta", "weights")):
            if key in self.changed() and self.balance != balance:
                raise ValueError(f"{key} is of balance={balance}; set it, or remove {key}")
        for name in self.teachers:
            if self.views == "same" and teacher_of(name)[1] != STAGE1:
                raise ValueError(
                    f"views=same asks the teachers' networks in every step, and {name} is not the "
                    "network's own; set views=fixed, or name the experiment alone"
                )
        return self


def teacher_of(name: str) -> tuple[str, str]:
    """Experiment and head that `<experiment>` or `<experiment>/<head>` means."""
    experiment, _, head = name.partition("/")
    return experiment, head or STAGE1


def check_distill(distill: Distill, model, train) -> None:
    """Errors: ValueError for what cannot be taught. model, train: the sections of the config"""
    network = model.network
    if network.unlabelled:
        raise ValueError(
            f"train.distill: with model.network={network.name} {network.unlabelled}, so there is "
            "no image of theirs that a teacher could have seen; remove it"
        )
    if distill.views == "same" and train.mixing.manifold:
        raise ValueError(
            "train.distill.views=same shows the teachers the images that the network sees, and "
            "train.mixing.manifold mixes inside the network; set views=fixed, or use mixup"
        )
