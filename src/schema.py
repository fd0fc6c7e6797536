"""Every key of a config: default, range, unit and meaning.

`configs/folder_template.yaml` is generated from this file and its neighbours (`schema_data.py`,
`schema_losses.py`, …), so what stands here is the reference. A new method adds its keys to the
section of its stage. Nothing here imports torch.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from src.errors import some
from src.schema_data import Bins, Data, Folds, Longtail
from src.schema_heads import CRT, NCM, Head
from src.schema_losses import (
    Criterion,
    CrossEntropy,
    Deferred,
    Mixing,
    Sampler,
    SecondSampler,
    check_training,
)
from src.schema_networks import (
    BBN,
    KT,
    RIDE,
    Auxiliary,
    Network,
    PaCo,
    TaskSeparator,
    check_network,
)
from src.schema_outputs import Ensemble, Posthoc, Predict
from src.schema_search import Search
from src.section import VOLATILE, Section

RESERVED = ("stage1", "posthoc", "features")  # directories of ours beside the heads'


class Model(Section):
    network: Network = Field(
        "plain",
        description="how a backbone becomes logits; plain: pooled features and one head; bbn: two "
        "branches for two samplers; kt: a second head learns from class means; paco: classes and "
        "samples are contrasted at once; ride: the mean of diverse experts on shared early stages; "
        "task_separator: a gate between experts for many, medium and few images",
    )
    backbone: str = Field(
        "resnet50", description="any timm model, or cifar_resnet20 / 32 / 44 / 56"
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of timm.create_model"
    )
    pretrained: bool | str = Field(
        True,
        description="true: timm's weights from the hub; false: random; a path: a local weights "
        "file; experiment:<name>: stage 1 of another experiment on any dataset "
        "(<dataset>/<name> for another one than this), same fold where it has it",
    )
    head: Literal["linear", "cosine"] = Field("linear", description="features to logits")
    cosine_scale: float = Field(
        16.0, gt=0, description="cosine head: logits lie in [-scale, scale]; LDAM's paper has 30"
    )
    anti_alias: bool = Field(
        False,
        description="blur feature maps before taking every second pixel: ResNets, EfficientNets, "
        "MobileNets and others with timm's aa_layer, and the CIFAR ResNets",
    )
    blur_kernel: Literal[3, 5] = Field(3, description="anti_alias: pixels, width of the blur")
    bbn: BBN = Field(default_factory=BBN, description="the network bbn")
    kt: KT = Field(default_factory=KT, description="the network kt")
    paco: PaCo = Field(default_factory=PaCo, description="the network paco")
    task_separator: TaskSeparator = Field(
        default_factory=TaskSeparator, description="the network task_separator"
    )
    ride: RIDE = Field(default_factory=RIDE, description="the network ride")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability, before the head")
    drop_path: float = Field(0.0, ge=0, lt=1, description="probability of skipping a block")
    image_size: int = Field(
        224, ge=8, description="pixels, height and width of the network's input"
    )
    crop_pct: float = Field(
        0.875, gt=0, le=1, description="evaluation: centre crop's share of the resized short side"
    )
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="when resizing")
    mean: tuple[float, float, float] | None = Field(
        None, description="of pixels in 0..1; null: what the backbone was pretrained with"
    )
    std: tuple[float, float, float] | None = Field(
        None, description="of pixels in 0..1; null: what the backbone was pretrained with"
    )


class Augment(Section):
    crop: Literal["random_resized", "padded", "none"] = Field(
        "random_resized",
        description="random_resized: a random part of the image; padded: the whole image, "
        "shifted by up to 1/8 (the CIFAR recipe); none: as in evaluation",
    )
    scale: tuple[float, float] = Field(
        (0.35, 1.0), description="random_resized: share of the image's area, from 0 to 1"
    )
    hflip: bool = Field(True, description="mirror left-right half of the time")
    vflip: bool = Field(False, description="mirror up-down half of the time")
    rotate: float = Field(0.0, ge=0, le=180, description="up to this many degrees either way")
    color_jitter: float = Field(
        0.2, ge=0, le=1, description="relative change of brightness, contrast and saturation"
    )
    erase: float = Field(0.0, ge=0, le=1, description="probability of erasing a random rectangle")

    @model_validator(mode="after")
    def _ordered(self):
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale must be 0 < low <= high <= 1, found {self.scale}")
        return self


class Train(Section):
    epochs: int = Field(30, ge=1, description="passes of N images, for every sampler")
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
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="sgd is with momentum")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd; adamw's beta1")
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
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up from lr / 100")
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm; null: no limit")
    auxiliaries: tuple[Auxiliary, ...] = Field(
        (),
        description="losses beside the criterion; frequency: a second head learns the bin of the "
        "image's class",
    )
    mixing: Mixing = Field(default_factory=Mixing, description="of images within a batch")
    augment: Augment = Field(default_factory=Augment, description="of single images")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay per step of the moving average of the weights that is kept; null: no",
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
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs ({self.warmup_epochs}) must be below epochs ({self.epochs})"
            )
        if not self.nesterov and self.optimizer != "sgd":
            raise ValueError("nesterov: false is for the optimizer sgd; adamw has no such momentum")
        if "sampler_power" in self.changed() and "power" not in (self.sampler, self.second_sampler):
            raise ValueError("sampler_power is used by the sampler `power` alone")
        if list(self.milestones) != sorted(self.milestones) or not all(
            0 < m < 1 for m in self.milestones
        ):
            raise ValueError(
                "milestones must be rising fractions of the training between 0 and 1, "
                f"found {list(self.milestones)}"
            )
        return self


class Config(Section):
    data: Data = Field(default_factory=Data, description="where the images are")
    longtail: Longtail = Field(default_factory=Longtail, description="optional artificial tail")
    bins: Bins = Field(default_factory=Bins, description="frequency bands of the classes")
    folds: Folds = Field(default_factory=Folds, description="cross-validation")
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "top5"] = Field(
        "balanced_accuracy", description="the competition's metric: what 04 and 06 tune for"
    )
    model: Model = Field(default_factory=Model, description="stage 1: the network")
    train: Train = Field(default_factory=Train, description="stage 1: its training")
    search: Search = Field(default_factory=Search, description="02 and 03: `--search` for settings")
    stage2: tuple[Head, ...] = Field(
        (CRT(), NCM()), description="heads trained on the frozen features of stage 1"
    )
    posthoc: Posthoc = Field(default_factory=Posthoc, description="calibration and fusion on OOF")
    predict: Predict = Field(default_factory=Predict, description="test logits")
    ensemble: Ensemble = Field(default_factory=Ensemble, description="the submission")
    seed: int = Field(0, ge=0, description="of everything random in stages 1 and 2")

    @model_validator(mode="after")
    def _consistent(self):
        names = [head.name or head.head for head in self.stage2]
        taken = sorted({n for n in names if names.count(n) > 1 or n in RESERVED})
        if taken:
            raise ValueError(
                f"stage2 heads need names of their own: {some(taken)} is used twice or reserved; "
                "add `name: …` to one of them"
            )
        from_stage1 = [head.head for head in self.stage2 if head.head in ("lws", "maxnorm")]
        if from_stage1 and self.model.head != "linear":
            raise ValueError(
                f"stage2 head {from_stage1[0]} starts from stage 1's classifier, which must be "
                f"linear; model.head is {self.model.head}. Use crt, cosine or ncm"
            )
        check_network(self.model, self.train)
        check_training(self.train, self.model)
        for known in self.posthoc.heads or ():
            if known not in ("stage1", *names):
                raise ValueError(f"posthoc.heads names {known!r}, but stage2 has only {names}")
        for member in self.ensemble.members:
            if member not in ("posthoc", "stage1", *names):
                raise ValueError(f"ensemble.members names {member!r}, but stage2 has only {names}")
        _check_device_cache(self)
        return self

    @property
    def dataset(self) -> str:
        """The dataset's directory under runs/."""
        return self.data.name or Path(self.data.root).name


def _check_device_cache(config: Config) -> None:
    augment = config.train.augment
    others = [key for key in ("rotate", "color_jitter", "erase") if getattr(augment, key)]
    if config.data.cache == "device" and (augment.crop != "padded" or others):
        found = ", ".join([f"crop {augment.crop}", *others])
        raise ValueError(
            "data.cache: device shifts and mirrors images on the device and does nothing else: it "
            f"needs train.augment {{crop: padded}} with rotate, color_jitter and erase 0, found "
            f"{found}; use data.cache: memory"
        )
