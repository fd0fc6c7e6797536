"""Keys of stage 1's training."""

from typing import Literal

from pydantic import Field, model_validator

from src.config.augment import Augment
from src.config.auxiliaries import Auxiliary
from src.config.distill import Distill
from src.config.losses import Criterion, CrossEntropy, Deferred, Mixing, Sampler, SecondSampler
from src.config.pseudo import Pseudo
from src.config.schedules import Frozen, Resizing, boundaries, check_frozen, check_resizing
from src.config.section import EPOCHS, VOLATILE, Section, named


class Train(Section):
    epochs: int = Field(
        30,
        ge=0,
        description="passes of N images, for every sampler; 0: the weights as loaded are the "
        "result, and 03 fits heads on their features, a probe",
    )
    batch_size: int = Field(
        64, ge=2, description="images per optimizer step, over all processes and micro-batches"
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="images per forward pass and process; smaller than the batch means gradient "
        "accumulation; null: batch_size / processes",
    )
    on_oom: Literal["stop", "accumulate"] = Field(
        "stop",
        description="out of memory: stop and say which micro_batch fits, or halve it and go on",
    )
    sampler: Sampler = Field(
        "instance",
        description="which images an epoch sees: as they are; classes equally often; classes by "
        "the root or another power of their size; from instance to class_balanced over the "
        "epochs; small classes most often",
    )
    sampler_power: float = Field(
        0.5,
        ge=-2,
        le=2,
        description="power: a class is drawn in proportion to its images to this power",
    )
    second_sampler: SecondSampler | None = Field(
        None,
        description="draws a second batch beside each; same: the same images again, augmented "
        "anew; null: there is none",
    )
    criterion: Criterion = Field(
        default_factory=CrossEntropy, description="logits and labels to a number"
    )
    deferred: Deferred = Field(
        default_factory=Deferred,
        description="what makes classes count equally late in training; over a criterion that "
        "does so all along (balanced_softmax, logit_adjusted, lade), it is done twice from then on",
    )
    optimizer: Literal["sgd", "adamw", "adam"] = Field(
        "adamw",
        description="sgd is with momentum; adam has weight_decay in the gradient, as sgd has",
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd; beta1 of adam and adamw")
    beta2: float = Field(0.999, ge=0, lt=1, description="adam and adamw")
    epsilon: float = Field(1e-8, gt=0, description="adam and adamw; beside the root they divide by")
    nesterov: bool = Field(True, description="sgd: with Nesterov's momentum; false: classical")
    weight_decay: float = Field(
        0.05, ge=0, description="not applied to biases and norm layers, unless decay_all is on"
    )
    decay_all: bool = Field(
        False, description="weight_decay also for biases and norm layers, as torch.optim does"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the lr from each layer to the one below it"
    )
    head_lr_factor: float = Field(1.0, gt=0, description="factor on the lr of the fresh head")
    schedule: Literal["cosine", "multistep"] = Field("cosine", description="of the lr, per step")
    min_lr: float = Field(1e-6, ge=0, description="cosine: the lr at the end")
    milestones: tuple[float, ...] = Field(
        (0.6, 0.8), description="multistep: fractions of the training at which the lr drops"
    )
    gamma: float = Field(0.1, gt=0, lt=1, description="multistep: factor at each milestone")
    warmup_epochs: float = Field(
        1.0,
        ge=0,
        json_schema_extra=EPOCHS,
        description="epochs of linear warm-up from lr / 100; where that is the whole training, "
        "half of it",
    )
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm; null: no limit")
    freeze: tuple[named(Frozen), ...] = Field(
        (),
        description="parameters of the network that keep the weights they came with, by shell-"
        "style patterns of their names (backbone.*, backbone.layer1.*), or do so for the first "
        "epochs: {name: backbone.*, until: 3}. A batch norm layer that is frozen as a whole keeps "
        "its statistics, too",
    )
    freeze_batchnorm: bool = Field(
        False, description="every batch norm layer keeps its statistics and normalises by them"
    )
    prefix_cache: float = Field(
        4.0,
        ge=0,
        description="GiB at most: with model.tuning, tokens before the first block that trains are "
        "made once and kept, where images look the same in every epoch; 0: never",
        json_schema_extra=VOLATILE,
    )
    auxiliaries: tuple[Auxiliary, ...] = Field(
        (),
        description="losses beside the criterion; frequency: a second head learns the bin of the "
        "image's class; semantic_cls: its name goes through the transformer beside the image, as a "
        "second class token",
    )
    mixing: Mixing = Field(default_factory=Mixing, description="of images within a batch")
    augment: Augment = Field(default_factory=Augment, description="of single images")
    resizing: tuple[Resizing, ...] = Field(
        (),
        description="sizes of training images before they have model.image_size, each with its "
        "share of the epochs: [{size: 128, share: 0.5}]; changed between epochs. Evaluation is "
        "always at model.image_size: [{size: 192, share: 1}] trains smaller than it all along",
    )
    pseudo: Pseudo = Field(
        default_factory=Pseudo,
        description="a second round: confident predictions of another experiment on test images as "
        "further rows of training, never of validation nor of stage 2. A fold takes those of the "
        "same fold's network alone, which has not seen what it holds out; full the mean of all",
    )
    distill: Distill = Field(
        default_factory=Distill,
        description="teachers: other experiments whose networks say of each training image how "
        "likely every class is, as a second target beside its label",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay per step of the moving average of the weights that is kept; null: no",
    )
    average_last: int = Field(
        1,
        ge=1,
        json_schema_extra=EPOCHS,
        description="epochs at the end whose weights are averaged, with batch norm estimated anew; "
        "1: the last epoch's are kept",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="autocast; auto: bf16 on a GPU that has it, fp32 on a CPU"
    )
    channels_last: bool = Field(True, description="memory format of images and convolutions")
    compile: bool = Field(
        False, description="torch.compile the network", json_schema_extra=VOLATILE
    )
    select: Literal["last", "best"] = Field(
        "last",
        description="which epoch's weights are kept. best: by the metric on the held-out fold, "
        "which makes OOF scores optimistic; it is marked as such everywhere",
    )
    eval_batch_size: int = Field(
        128,
        ge=1,
        description="images per forward pass without gradients",
        json_schema_extra=VOLATILE,
    )
    eval_every: int = Field(
        1,
        ge=1,
        description="epochs between validations; the last epoch always is",
        json_schema_extra=VOLATILE,
    )
    tracker: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = Field(
        "none", description="experiment tracker, through accelerate", json_schema_extra=VOLATILE
    )

    @model_validator(mode="after")
    def _consistent(self):
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch "
                f"({self.micro_batch})"
            )
        if not self.nesterov and self.optimizer != "sgd":
            raise ValueError(
                "nesterov: false is for the optimizer sgd; the others have no such momentum"
            )
        for key in ("beta2", "epsilon"):
            if key in self.changed() and self.optimizer == "sgd":
                raise ValueError(f"{key} is of the optimizers adam and adamw, and it is sgd")
        if "sampler_power" in self.changed() and "power" not in (self.sampler, self.second_sampler):
            raise ValueError("sampler_power is used by the sampler `power` alone")
        if self.epochs:
            check_resizing(self.resizing, self.epochs)
            check_frozen(self.freeze, self.epochs)
        if self.average_last > max(self.epochs, 1):
            raise ValueError(
                f"average_last ({self.average_last}) must not be above epochs ({self.epochs})"
            )
        if self.average_last > 1 and self.select == "best":
            raise ValueError(
                "average_last averages the last epochs and select: best keeps a single one; use "
                "select: last"
            )
        names = [auxiliary.name for auxiliary in self.auxiliaries]
        if len(set(names)) < len(names):
            raise ValueError(f"auxiliaries: each can be there once, found {names}")
        if list(self.milestones) != sorted(self.milestones) or not all(
            0 < m < 1 for m in self.milestones
        ):
            raise ValueError(
                "milestones must be rising fractions of the training between 0 and 1, "
                f"found {list(self.milestones)}"
            )
        return self

    def resized(self, epoch: int) -> int | None:
        """Pixels of the training images of an epoch, from 0; None: those of model.image_size."""
        ends = boundaries(self.resizing, self.epochs)
        steps = zip(self.resizing, ends, strict=True)
        return next((step.size for step, end in steps if epoch < end), None)

    @property
    def frozen(self) -> list[str]:
        """Patterns of what never trains."""
        return [item.name for item in self.freeze if item.until is None]

    @property
    def thaws(self) -> list[Frozen]:
        """What is frozen at first."""
        return [item for item in self.freeze if item.until is not None]
