"""What benchmarks/cifar_lt.py trains: methods as keys of the config, and the figures published.

A method adds `settings` to configs/cifar10_lt.yaml; heads and post-hoc rows are computed from its
features in seconds. Published accuracies are those of docs with ResNet-32 and 200 epochs: BBN's
table (Zhou et al., CVPR 2020), and where it says `B` Bag of Tricks (Zhang et al., AAAI 2021), `M`
logit adjustment (Menon et al., ICLR 2021).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.label_text import Names

SPLITS = ("exp100", "exp50", "exp10")  # of the published triples


@dataclass(frozen=True)
class Budget:
    """How long and with what every method is trained, and those that search their weight decay
    search it: keys of the config.

    held_out: train on four fifths of the images, once, for the last epoch and for the selected one;
    otherwise on all of them, as was published, and the selected epoch takes a training of its own ·
    posthoc: which of POSTHOC; τ takes a training of its own, too, where not held_out ·
    adapted: method → keys of its own schedule, where that of the others does not suit it
    """

    schedule: str
    settings: dict[str, Any]
    search: dict[str, Any]
    held_out: bool = False
    posthoc: tuple[str, ...] = ("tau", "prior")
    adapted: dict[str, dict[str, Any]] = field(default_factory=dict)


SHORT_MIXING = {"train.mixing.off_epochs": 4}  # ends with the first drop of the learning rate
SHORT_BBN = {"model.network.t_max": 27}  # α ends at 1/2: the branches count alike
BBNS = ("bbn", "bbn_alpha0", "bbn_alpha1", "bbn_anti_alias")

PUBLISHED_SCHEDULE = Budget(
    "ResNet-32, 200 epochs, batch 128, lr 0.1 (5 epochs warm-up, × 0.01 after 160 and 180), "
    "weight decay 2e-4: LDAM's; BBN's lr drops after 120 and 160, its authors' schedule",
    {"train.precision": "bf16", "data.workers": 4},
    {"search.trials": 12, "search.epochs": 60},
    adapted=dict.fromkeys(BBNS, {"train.milestones": [0.6, 0.8]}),
)
BUDGETS = {
    "gpu": PUBLISHED_SCHEDULE,
    "published": replace(  # the same where there is no GPU, over days
        PUBLISHED_SCHEDULE,
        settings={"train.precision": "bf16", "data.workers": 0, "train.eval_every": 20},
        posthoc=("prior",),
    ),
    "cpu": Budget(
        "ResNet-20, 20 epochs, bf16, batch 128, lr 0.1 (1 epoch warm-up, × 0.1 after 16 and 19), "
        "Nesterov, weight decay 2e-4 on weights; with one sampler, the last "
        f"{SHORT_MIXING['train.mixing.off_epochs']} epochs are not mixed; "
        f"BBN's T_max is {SHORT_BBN['model.network.t_max']}",
        {
            "model.backbone": "cifar_resnet20",
            "train.epochs": 20,
            "train.warmup_epochs": 1,
            "train.milestones": [0.8, 0.95],
            "train.gamma": 0.1,
            "train.nesterov": True,
            "train.decay_all": False,
            "train.precision": "bf16",
            "data.workers": 0,
        },
        {"search.trials": 8, "search.epochs": 8},
        held_out=True,
        adapted={
            **dict.fromkeys(("mixup", "manifold", "cutmix", "remix"), SHORT_MIXING),
            **dict.fromkeys(("bbn", "bbn_anti_alias"), SHORT_BBN),
        },
    ),
}


@dataclass(frozen=True)
class Method:
    """One network to train.

    heads: names in HEADS, fitted on its features · posthoc: names in POSTHOC · search: its weight
    decay is searched first, on folds of the training set · names: where it looks at the label text,
    whose · ablation: not part of the default run ·
    same_as: trained once, under that name; its figures stand in both rows
    """

    name: str
    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    heads: tuple[str, ...] = ()
    posthoc: tuple[str, ...] = ()
    search: bool = False
    names: Names | None = None
    ablation: bool = False
    same_as: str | None = None


# more steps than the rows were measured with diverge where images are few
ADAPTER = {"head": "crt", "adapter": 64, "lr": 0.02, "epochs": 30}
HEADS = {
    "crt": ("cRT", {"head": "crt"}),
    "lws": ("LWS", {"head": "lws"}),
    "ncm": ("NCM", {"head": "ncm"}),
    "cosine": ("cosine head", {"head": "cosine"}),
    "maxnorm": ("MaxNorm, weight decay, CB", {"head": "maxnorm"}),
    "maxnorm_bce": (
        "MaxNorm, published loss and epochs",
        {"head": "maxnorm", "loss": "cb_softmax_bce", "epochs": 10},
    ),
    "adapter": ("cRT with an adapter", ADAPTER),
    "multi_task": (
        "multi-task cRT (adapter, frequency head)",
        ADAPTER | {"frequency_weight": 1.0},
    ),
}
POSTHOC = {
    "tau": "τ-norm, τ from held-out images",
    "prior": "logit adjustment afterwards, τ = 1",
}

LDAM = {"model.head": "cosine", "model.cosine_scale": 30.0, "train.criterion": {"name": "ldam"}}
DRW = {"train.deferred": {"weights": True}}
BBN = {"model.network": "bbn", "train.second_sampler": "reversed"}
RIDE = LDAM | DRW | {"model.network": "ride"}
PACO = {
    "model.network": "paco",
    "train.second_sampler": "same",
    "train.criterion": {"name": "balanced_softmax"},
}
VIT = {
    "model.backbone": "vit_tiny_patch16_224",
    "model.kwargs": {
        "img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3,
        "global_pool": "token",
    },
    "train.optimizer": "adamw",
    "train.nesterov": True,
    "train.lr": 1e-3,
    "train.weight_decay": 0.05,
    "train.decay_all": False,
    "train.schedule": "cosine",
    "train.milestones": [],
    "train.precision": "fp32",
}  # fmt: skip
TRANSFG = VIT | {
    "model.network": {"name": "transfg", "stride": 4},
    "model.kwargs": {k: v for k, v in VIT["model.kwargs"].items() if k != "img_size"},
}
SEMANTIC = TRANSFG | {"train.auxiliaries": [{"name": "semantic_cls"}]}
SEMANTIC_STRONG = TRANSFG | {"train.auxiliaries": [{"name": "semantic_cls", "beta": 1.0}]}
SEPARATOR = {"model.network": "task_separator", "train.second_sampler": "class_balanced"}
BALANCED = {"train.criterion": {"name": "balanced_softmax"}}
ADJUSTED = {"train.criterion": {"name": "logit_adjusted"}}
CB_FOCAL = {"name": "class_balanced", "gamma": 1.0, "form": "sigmoid"}

METHODS = {
    method.name: method
    for method in (
        Method("ce", "cross-entropy", heads=tuple(HEADS), posthoc=("tau", "prior")),
        Method("focal", "focal", {"train.criterion": {"name": "focal"}}),
        Method("cb_focal", "CB-focal", {"train.criterion": CB_FOCAL}),
        Method("mixup", "mixup", {"train.mixing": {"mixup": 1.0}}),
        Method("manifold", "manifold mixup", {"train.mixing": {"manifold": 1.0}}),
        Method(
            "manifold_two",
            "manifold mixup, two samplers",
            {"train.mixing": {"manifold": 1.0}, "train.second_sampler": "reversed"},
        ),
        Method("ce_drw", "CE-DRW", DRW),
        Method("ce_drs", "CE-DRS", {"train.deferred": {"sampling": True}}),
        Method("ldam_drw", "LDAM-DRW", LDAM | DRW),
        Method("bbn", "BBN", BBN),
        Method("balanced_softmax", "balanced softmax", BALANCED),
        Method(
            "logit_adjusted",
            "logit adjustment, τ = 1 (balanced softmax)",
            ADJUSTED,
            same_as="balanced_softmax",
        ),
        Method("kt", "knowledge transfer (KT)", {"model.network": "kt"}),
        Method(
            "best",
            "LDAM-DRS, EMA, weight decay 5e-4",  # LDAM and DRS were the best on fold 0
            LDAM
            | {
                "train.deferred": {"sampling": True},
                "train.ema": 0.99,
                "train.weight_decay": 5e-4,
            },
        ),
        Method("reversed", "reversed sampler alone", {"train.sampler": "reversed"}, ablation=True),
        Method("bbn_alpha0", "BBN, α = 0", BBN | {"model.network.alpha": 0.0}, ablation=True),
        Method("bbn_alpha1", "BBN, α = 1", BBN | {"model.network.alpha": 1.0}, ablation=True),
        Method(
            "multi_task",
            "cross-entropy with frequency classifier",
            {"train.auxiliaries": [{"name": "frequency"}]},
            heads=("crt", "multi_task"),
            ablation=True,
        ),
        Method("ce_wd", "cross-entropy, searched weight decay", posthoc=("tau",), search=True,
               ablation=True),
        *(
            Method(name, f"{title} sampler", {"train.sampler": name}, ablation=True)
            for name, title in (
                ("square_root", "square-root"),
                ("class_balanced", "class-balanced"),
                ("progressive", "progressively balanced"),
            )
        ),
        Method("cutmix", "CutMix", {"train.mixing": {"cutmix": 1.0}}, ablation=True),
        Method("remix", "Remix", {"train.mixing": {"mixup": 1.0, "remix": True}}, ablation=True),
        Method("cb_ce", "class-balanced cross-entropy",
               {"train.criterion": {"name": "class_balanced"}}, ablation=True),
        Method("seesaw", "seesaw", {"train.criterion": {"name": "seesaw"}}, ablation=True),
        Method("lade", "LADE", {"train.criterion": {"name": "lade"}}, ablation=True),
        Method("anti_alias", "anti-aliasing", {"model.anti_alias": True}, ablation=True),
        Method("bbn_anti_alias", "BBN, anti-aliasing", BBN | {"model.anti_alias": True},
               ablation=True),
        Method("kt_images", "KT, every image counts alike",
               {"model.network": "kt", "model.network.average": "images"}, ablation=True),
        Method("task_separator", "task separator", SEPARATOR, ablation=True),
        Method("ride", "RIDE", RIDE, ablation=True),
        Method("paco", "GPaCo", PACO, ablation=True),
        Method("vit", "ViT, patches of 4", VIT, ablation=True),
        Method("transfg", "TransFG on that ViT", TRANSFG, ablation=True),
        Method("transfg_plain_loss", "TransFG without its contrast",
               TRANSFG | {"model.network.contrast": 0.0}, ablation=True),
        Method("semantic_cls", "semantic CLS token on that TransFG", SEMANTIC, names="own",
               ablation=True),
        Method("semantic_cls_shuffled", "the same, names shuffled", SEMANTIC, names="shuffled",
               ablation=True),
        Method("semantic_cls_strong", "semantic CLS token, β = 1", SEMANTIC_STRONG, names="own",
               ablation=True),
        Method("semantic_cls_strong_shuffled", "semantic CLS token, β = 1, names shuffled",
               SEMANTIC_STRONG, names="shuffled", ablation=True),
    )
}  # fmt: skip

ABLATIONS = {  # title → rows of the score files, as method or method/head
    "BBN: which branch, which sampler": ("ce", "reversed", "bbn_alpha0", "bbn_alpha1", "bbn"),
    "stage 1 / stage 2, basic or multi-task": (
        "ce/crt",
        "ce/adapter",
        "ce/multi_task",
        "multi_task/crt",
        "multi_task/multi_task",
    ),
    "τ-norm with and without searched weight decay": ("ce", "ce/tau", "ce_wd", "ce_wd/tau"),
    "samplers": ("ce", "square_root", "class_balanced", "progressive", "reversed"),
    "more losses and mixing": ("ce", "cb_ce", "seesaw", "lade", "mixup", "cutmix", "remix"),
    "anti-aliasing": ("ce", "anti_alias", "bbn", "bbn_anti_alias"),
    "knowledge transfer": ("ce", "ce/ncm", "kt", "kt_images"),
    "experts and contrast": (
        "ce",
        "task_separator",
        "ldam_drw",
        "ride",
        "balanced_softmax",
        "paco",
    ),
    "a vision transformer (width 96, 6 blocks, AdamW) from scratch, and its patches chosen": (
        "vit",
        "transfg",
        "transfg_plain_loss",
    ),
    "semantic CLS token, by MiniLM on the names, on that TransFG": (
        "transfg",
        "semantic_cls",
        "semantic_cls_shuffled",
        "semantic_cls_strong",
        "semantic_cls_strong_shuffled",
    ),
}


def _triple(text: str) -> dict[str, float]:
    """`70.36/74.81/86.39` → accuracy by split; `–`: not published."""
    values = zip(SPLITS, text.split("/"), strict=True)
    return {split: float(value) for split, value in values if value != "–"}


PUBLISHED = {  # by the name of the config, then by row
    name: {row: _triple(text) for row, text in rows.items()}
    for name, rows in {
        "cifar10_lt": {
            "ce": "70.36/74.81/86.39",
            "focal": "70.38/76.72/86.66",
            "cb_focal": "74.57/79.27/87.10",
            "mixup": "73.06/77.82/87.10",
            "manifold": "72.96/77.95/87.03",
            "manifold_two": "73.10/79.21/86.83",
            "ce_drw": "76.34/79.97/87.56",
            "ce_drs": "75.61/79.81/87.38",
            "ldam_drw": "77.03/81.03/88.16",
            "bbn": "79.82/82.18/88.32",
            "logit_adjusted": "80.92/–/–",  # M
            "balanced_softmax": "77.54/81.11/–",  # B
            "reversed": "71.62/78.11/–",  # B, BBN's sampling without its branches
            "ce/crt": "74.99/80.17/–",  # B
            "ce/lws": "72.63/78.66/–",  # B
            "ce/tau": "72.70/79.78/–",  # B
        },
        "cifar100_lt": {
            "ce": "38.32/43.85/55.71",
            "focal": "38.41/44.32/55.78",
            "cb_focal": "39.60/45.17/57.99",
            "mixup": "39.54/44.99/58.02",
            "manifold": "38.25/43.09/56.55",
            "manifold_two": "36.81/42.05/56.46",
            "ce_drw": "41.51/45.29/58.12",
            "ce_drs": "41.61/45.48/58.11",
            "ldam_drw": "42.04/46.62/58.71",
            "bbn": "42.56/47.02/59.12",
            "logit_adjusted": "42.01/47.03/57.74",  # M
            "balanced_softmax": "42.99/46.55/–",  # B
            "reversed": "37.06/42.03/–",  # B
            "ce/crt": "40.26/45.36/–",  # B
            "ce/lws": "40.16/45.21/–",  # B
            "ce/tau": "40.96/45.69/–",  # B
        },
    }.items()
}

OTHER_SOURCES = {  # B and M: their cross-entropy is not the one above
    "logit_adjusted", "balanced_softmax", "reversed", "ce/crt", "ce/lws", "ce/tau"
}  # fmt: skip


def row_title(row: str, methods: dict[str, Method] = METHODS) -> str:
    """`ce/crt` → `CE + cRT`: a method, with a head or a post-hoc step if there is one."""
    name, _, extra = row.partition("/")
    if not extra:
        return methods[name].title
    added = HEADS[extra][0] if extra in HEADS else POSTHOC[extra]
    return f"{'CE' if name == 'ce' else methods[name].title} + {added}"


def in_order(rows: Iterable[str], methods: dict[str, Method] = METHODS) -> list[str]:
    """Rows in the order of the methods, each followed by its heads and post-hoc rows."""
    every = ([m.name, *(f"{m.name}/{x}" for x in (*m.heads, *m.posthoc))] for m in methods.values())
    found = set(rows)
    return [row for group in every for row in group if row in found]
