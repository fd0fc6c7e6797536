"""Every key of a config: default, range, unit and meaning.

One file per section stands beside this one; what stands there is the reference, from which
`configs/folder_template.yaml` is generated. Nothing here imports torch.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from src.config.auto import RULES
from src.config.data import Bins, Data, Folds, Longtail
from src.config.ensemble import Ensemble
from src.config.exclusions import check_training, check_views
from src.config.heads import CRT, NCM, Head
from src.config.judge import Judge
from src.config.metric import FORMS, MetricName
from src.config.model import Model
from src.config.names import STAGE1, at
from src.config.network_exclusions import check_network
from src.config.observations import Observations
from src.config.posthoc import Posthoc, check_columns, check_heads
from src.config.predict import Predict
from src.config.search import Search
from src.config.section import Section
from src.config.soup import Soup
from src.config.submission import Submission
from src.config.target import TargetPrior
from src.config.text import Text
from src.config.training import Train
from src.errors import some

RESERVED = (STAGE1, "posthoc", "features")  # directories of ours beside the heads'


class Config(Section):
    data: Data = Field(default_factory=Data, description="where the images are")
    longtail: Longtail = Field(default_factory=Longtail, description="optional artificial tail")
    bins: Bins = Field(default_factory=Bins, description="frequency bands of the classes")
    folds: Folds = Field(default_factory=Folds, description="cross-validation")
    metric: MetricName = Field(
        "balanced_accuracy",
        description="the competition's metric: what 04 and 06 tune for, decisions included. "
        f"{FORMS}; or in keys, as in {{name: topk, k: 3}}, {{name: f_beta, beta: 0.5}}, "
        "{name: kappa, order: [2, 0, 1]} (the place of each class, in the order of classes.csv), "
        "{name: python, file: my.py, function: cost, greater_is_better: false}. Functions "
        "take (labels, predicted) or (labels, probabilities), arrays [N] and [N, K]",
    )
    target_prior: TargetPrior | None = Field(
        None,
        description="how often each class is on the leaderboard, where that is known: balanced; "
        "train, as in the training images; uniform-over-present, the same for every class that has "
        "a training image and 0 for others; or a CSV under data.root with the columns class_id and "
        "prior, which sum to one. 04 and 06 tune for it: out-of-fold images count by how much more "
        "often their class is there. null: not known; out-of-fold images count as they are, and "
        "logit_adjustment goes towards classes of equal frequency",
    )
    model: Model = Field(default_factory=Model, description="stage 1: the network")
    train: Train = Field(default_factory=Train, description="stage 1: its training")
    text: Text = Field(
        default_factory=Text,
        description="what the classes are called, as vectors: made once, by 02 or 03, if something "
        "looks at them, and kept in runs/<dataset>/folds/text-<key>.npz",
    )
    soup: Soup | None = Field(
        None,
        description="02 averages the weights of finished experiments, fold by fold, instead of "
        "training; the section model is theirs. 03 … 06 go on as from any other. null: train",
    )
    search: Search = Field(default_factory=Search, description="02 and 03: `--search` for settings")
    stage2: tuple[Head, ...] = Field(
        (CRT(), NCM()), description="heads trained on the frozen features of stage 1"
    )
    observations: Observations = Field(
        default_factory=Observations,
        description="how images of one specimen (data.observation) share a prediction",
    )
    posthoc: Posthoc = Field(default_factory=Posthoc, description="calibration and fusion on OOF")
    judge: Judge = Field(
        default_factory=Judge, description="04 and 06: when what is fitted after training is kept"
    )
    predict: Predict = Field(
        default_factory=Predict,
        description="test logits. Of heads that compare features with something (ncm, knn, cosine, "
        "subcentre) predict/<head>.npz also has `distance` [N], 1 - cosine to the nearest class or "
        "training image: to find images of no known class, take as a threshold the 95th percentile "
        "of the same array in the head's oof.npz files",
    )
    ensemble: Ensemble = Field(default_factory=Ensemble, description="many logits become one")
    submission: Submission = Field(
        default_factory=Submission, description="the file for the leaderboard, as 06 writes it"
    )
    auto: tuple[Literal[tuple(RULES)], ...] = Field(
        (),
        description="keys that 02 decides by the training images, saying why; `train.epochs: auto` "
        "is short for it",
    )
    seed: int = Field(0, ge=0, description="of everything random in stages 1 and 2")

    @model_validator(mode="after")
    def _consistent(self):
        titles = [head.title for head in self.stage2]
        names = self.head_names
        taken = sorted({n for n in titles if titles.count(n) > 1 or n in RESERVED})
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
        if self.soup is not None:
            self.soup.check()
            if self.auto:
                raise ValueError(
                    f"auto: {some(self.auto)} is of training, and a soup trains nothing"
                )
        if self.observations.changed() and self.data.observation is None:
            raise ValueError(
                f"observations.{self.observations.changed()[0]} is of images that share a "
                "specimen, and data.observation names no column of them"
            )
        check_views(self.predict.tta, self.train.augment)
        check_heads(self.posthoc, names)
        check_columns(self.posthoc, self.data.columns)
        asked = {"ensemble.members": self.ensemble.members}
        asked["predict.keep_networks"] = self.predict.keep_networks
        head = self.submission.unknown and self.submission.unknown.head
        asked["submission.unknown.head"] = [head] if head not in (None, "probability") else []
        for key, heads in asked.items():
            for head in heads:
                if head not in ("posthoc", *names):
                    raise ValueError(f"{key} names {head!r}, but there are only {names}")
        _check_device_cache(self)
        _check_shift(self.ensemble.label_shift, self.target_prior)
        return self

    @property
    def head_names(self) -> list[str]:
        """Every head's name: `stage1`, its branches where the network has several, and the heads of
        stage 2 (src/config/names.py)."""
        branches = self.model.network.branches or ("",)
        own = [at(STAGE1, branch) for branch in self.model.network.branches]
        return [STAGE1, *own, *(at(h.title, branch) for h in self.stage2 for branch in branches)]

    @property
    def dataset(self) -> str:
        """The dataset's directory under runs/."""
        return self.data.name or Path(self.data.root).name


def _check_shift(label_shift: str, target_prior: str | None) -> None:
    if label_shift == "match" and target_prior is None:
        raise ValueError(
            "ensemble.label_shift: match imposes target_prior, which is null; say what it is, or "
            "let em estimate it"
        )
    if label_shift in ("em", "bbse") and target_prior is not None:
        raise ValueError(
            f"ensemble.label_shift: {label_shift} estimates the test's class prior, which "
            f"target_prior ({target_prior}) says already; use match, or remove one of them"
        )


def _check_device_cache(config: Config) -> None:
    if config.data.cache == "device" and config.train.resizing:
        raise ValueError(
            "data.cache: device keeps images of one size, and train.resizing asks for several; use "
            "data.cache: memory"
        )
    others = config.train.augment.beyond_moves
    if config.data.cache == "device" and others:
        raise ValueError(
            "data.cache: device shifts and mirrors images on the device and does nothing else: it "
            "needs train.augment {crop: padded} with everything but hflip and vflip off, found "
            f"{', '.join(others)}; use data.cache: memory"
        )
