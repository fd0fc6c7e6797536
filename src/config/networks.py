"""Keys of the networks and auxiliaries that have some of their own, and what they refuse."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from src.config.section import Section

Network = Literal["plain", "bbn", "kt", "paco", "ride", "task_separator"]


class BBN(Section):
    alpha: Literal["decay"] | Annotated[float, Field(ge=0, le=1)] = Field(
        "decay",
        description="weight of the conventional branch against the re-balancing one: decay from 1 "
        "to 0 with the epochs, or a fixed number from 0 to 1",
    )
    t_max: int | None = Field(
        None,
        ge=1,
        description="decay: alpha is 1 - ((T-1) / t_max)^2 in epoch T and reaches 0 after t_max "
        "epochs; null: train.epochs. The authors take 100 for 90 epochs and 200 for 180",
    )

    @model_validator(mode="after")
    def _used(self):
        if self.t_max is not None and self.alpha != "decay":
            raise ValueError(f"t_max is of alpha: decay, and alpha is {self.alpha}; remove t_max")
        return self


class KT(Section):
    phi: float = Field(
        0.2,
        ge=0,
        le=1,
        description="where class means are right: weight of the label against their soft scores",
    )
    temperature: float = Field(1.0, gt=0, description="of the soft scores; above 1 is softer")
    average: Literal["parts", "images"] = Field(
        "parts",
        description="parts: as published, the images that class means get right count together as "
        "much as those that they get wrong; images: each counts the same, which is better where "
        "few are wrong",
    )
    momentum: float = Field(
        0.1, gt=0, le=1, description="step of a class mean towards the features of a batch"
    )
    start_epoch: int = Field(
        1, ge=0, description="epochs in which class means are only gathered and teach nothing"
    )


class PaCo(Section):
    alpha: float = Field(
        0.01,
        ge=0,
        description="weight of each other view of the image's class as a positive; published: 0.01 "
        "for CIFAR-LT, 0.045 for ImageNet-LT",
    )
    beta: float = Field(
        1.0, gt=0, description="weight of the class itself, its row of the classifier, as one"
    )
    temperature: float = Field(
        0.05,
        gt=0,
        description="T, by which cosines of views are divided; published: 0.05 for CIFAR-LT, 0.2 "
        "for ImageNet-LT",
    )
    queue: int = Field(
        1024, ge=0, description="views of earlier batches that are kept to contrast with; 0: none"
    )
    width: int = Field(
        32,
        ge=1,
        description="of the projection in which views are contrasted; published: 32 for CIFAR-LT, "
        "128 for ImageNet-LT",
    )
    offset: float | None = Field(
        None,
        ge=0,
        description="added to the logit of every class where it is compared with samples; "
        "published: 0; null: 0 from random weights, otherwise 1 / temperature + log(beta / alpha), "
        "or classes have no share of the softmax for most of a short training",
    )


class TaskSeparator(Section):
    routing: Literal["hard", "soft"] = Field(
        "hard",
        description="hard: each image goes to the expert that the gate trusts most; soft: the "
        "experts' probabilities are averaged with the gate's",
    )


class RIDE(Section):
    experts: int = Field(3, ge=2, le=16, description="later stages and heads on one trunk")
    diversity: float = Field(
        0.2,
        ge=0,
        le=1,
        description="lambda: reward for experts that differ from their mean; 0: none. The "
        "authors take 0.2, for CIFAR up to 0.45",
    )
    temperature: float = Field(
        1.0, gt=0, le=10, description="of the probabilities that are to differ; above 1 is softer"
    )
    width: float | None = Field(
        None,
        gt=0.5,
        le=1,
        description="share of the channels in each expert's stages. Below 1: CIFAR ResNets alone; "
        "null: 0.75 for those where they start from random weights, otherwise 1",
    )

    @model_validator(mode="after")
    def _bounded(self):
        if self.diversity * self.temperature > 1:
            raise ValueError(
                "diversity x temperature must be at most 1, or the loss has no lower bound; found "
                f"{self.diversity} x {self.temperature}"
            )
        return self


class Frequency(Section):
    name: Literal["frequency"] = "frequency"
    weight: float = Field(1.0, gt=0, description="factor on its loss")


Auxiliary = Frequency  # one member so far


def check_network(model, train) -> None:
    """Errors: ValueError for combinations of a network with training that make no sense.

    model, train: the sections of the config
    """
    network = model.network
    for other in get_args(Network):
        keys = [] if other in ("plain", network) else getattr(model, other).changed()
        if keys:
            raise ValueError(
                f"model.{other}.{keys[0]} is used by model.network={other} alone, found {network}; "
                "remove the key or choose that network"
            )
    changed = model.changed()
    if "blur_kernel" in changed and not model.anti_alias:
        raise ValueError("model.blur_kernel is of anti_alias, which is off; set anti_alias=true")
    if "cosine_scale" in changed and model.head != "cosine":
        raise ValueError("model.cosine_scale is of the cosine head; set model.head=cosine")
    names = [auxiliary.name for auxiliary in train.auxiliaries]
    if len(set(names)) < len(names):
        raise ValueError(f"train.auxiliaries: each can be there once, found {names}")
    if "aa_layer" in model.kwargs:
        raise ValueError("model.kwargs.aa_layer: set model.anti_alias=true instead")
    if network == "bbn" and train.second_sampler is None:
        raise ValueError(
            "model.network=bbn trains its second branch on images of train.second_sampler; set "
            "train.second_sampler=reversed"
        )
    if network == "bbn" and names:
        raise ValueError(
            "train.auxiliaries: with model.network=bbn the two halves of the features come from "
            "different images, so there is no label that an auxiliary could learn from them"
        )
    if network in ("bbn", "kt", "task_separator") and train.criterion.name == "lade":
        raise ValueError(
            "train.criterion lade compares the logits that one network gives to all images of a "
            f"batch, and parts of model.network={network} see some of them or a mixture; set "
            "train.criterion={name: cross_entropy}"
        )
    if network in ("bbn", "task_separator", "ride") and train.compile:
        raise ValueError(
            f"train.compile compiles a network's forward pass, and model.network={network} trains "
            "its parts one by one; set train.compile=false"
        )
    if network == "paco":
        _check_paco(train)
    elif train.second_sampler == "same":
        raise ValueError(
            "train.second_sampler=same gives two views of each image, which model.network=paco "
            f"contrasts; {network} would learn nothing from the second, choose another sampler or "
            "remove it"
        )
    reason = {
        "bbn": "it mixes the losses of two images already",
        "kt": "class means, and whether they are right, need images of one class",
        "paco": "it pulls images of one class together, and a mixed image has two",
        "task_separator": "an expert is trained on images that belong to one bin",
    }.get(network)
    if reason and train.mixing.alphas:
        raise ValueError(f"train.mixing does not go with model.network={network}: {reason}")


def _check_paco(train) -> None:
    if train.second_sampler != "same":
        raise ValueError(
            "model.network=paco contrasts two views of each image; set train.second_sampler=same"
        )
    criterion = train.criterion
    if criterion.name not in ("balanced_softmax", "logit_adjusted") or criterion.smoothing:
        raise ValueError(
            "model.network=paco has a loss of its own, which takes the class prior from balanced "
            "softmax and nothing else; set train.criterion={name: balanced_softmax}, without "
            "smoothing"
        )
    if train.deferred.weights or train.deferred.sampling:
        raise ValueError(
            "train.deferred makes classes count equally late in training, and the class prior in "
            "model.network=paco does so all along; switch it off"
        )
