"""Keys of a second round of stage 1, which also trains on pseudo-labelled test images."""

from typing import Literal

from pydantic import Field, model_validator

from src.config.section import Section


class Pseudo(Section):
    experiment: str | tuple[str, ...] | None = Field(
        None,
        description="first round, of the same dataset, whose networks label the test images; run "
        "its 05 with predict.keep_networks=[posthoc]. A list of several: the mean of their "
        "log-probabilities, for a fold of the same fold's networks. null: no second round",
    )
    head: str = Field(
        "posthoc",
        description="whose logits label them. posthoc is calibrated, so min_confidence means what "
        "it says; any name in the first round's predict.keep_networks",
    )
    share: float = Field(
        0.5, gt=0, le=1, description="of the test images, the most confident, that are to be rows"
    )
    per: Literal["class", "bin", "all"] = Field(
        "class", description="groups, by the predicted class, among which the share is divided"
    )
    prior: Literal["balanced", "predicted", "train"] = Field(
        "balanced",
        description="how: each class alike, as often as it is predicted, as in the training set. "
        "A group that is predicted less often gives what it has",
    )
    min_confidence: float = Field(
        0.5, ge=0, lt=1, description="probability of the predicted class below which none is taken"
    )
    labels: Literal["hard", "soft"] = Field(
        "hard",
        description="hard: the predicted class. soft: the probabilities of the most likely classes",
    )
    classes: int = Field(
        10, ge=2, description="soft: most likely classes that are kept; theirs sum to 1"
    )
    temperature: float = Field(
        1.0, gt=0, description="soft: divides the logits first; below 1 sharpens the probabilities"
    )
    weight: float = Field(
        1.0, gt=0, le=10, description="factor on the loss of these rows; true labels have 1"
    )

    @property
    def rounds(self) -> tuple[str, ...]:
        """The experiments that label; none: there is no second round."""
        names = self.experiment or ()
        return (names,) if isinstance(names, str) else names

    @model_validator(mode="after")
    def _used(self):
        if len(set(self.rounds)) < len(self.rounds):
            raise ValueError(f"experiment: each can label once, found {list(self.rounds)}")
        if not self.rounds and self.changed():
            raise ValueError(
                f"{', '.join(self.changed())}: of a second round; name the first in experiment"
            )
        for key in ("classes", "temperature"):
            if key in self.changed() and self.labels != "soft":
                raise ValueError(f"{key} is of soft labels; set labels=soft or remove it")
        if self.per == "all" and "prior" in self.changed():
            raise ValueError("prior divides the share among groups; per: all has one, remove it")
        return self


def check_pseudo(pseudo: Pseudo, model, train) -> None:
    """Errors: ValueError for what cannot be trained with soft labels, or weights of images.

    model, train: the sections of the config
    """
    network = model.network
    if pseudo.weight != 1 and not network.weighs:
        raise ValueError(
            f"train.pseudo.weight={pseudo.weight} is a factor on the loss of single images, which "
            f"model.network={network.name} does not know; set weight=1, or a smaller share"
        )
    if pseudo.labels == "hard":
        return
    if network.unmixed:
        why = f"with model.network={network.name}: {network.unmixed}"
    elif train.criterion.name in ("class_balanced", "lade"):
        why = f"with train.criterion {train.criterion.name}, which weighs images by their class"
    elif train.deferred.weights:
        why = "with train.deferred.weights, which weigh images by their class"
    elif train.mixing.remix:
        why = "with train.mixing.remix, which compares the sizes of two images' classes"
    else:
        return
    raise ValueError(f"train.pseudo.labels=soft does not go {why}; set labels=hard")
