"""The methods of benchmarks/fine_grained.py: keys over configs/birds_lt_plain.yaml."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.label_text import Names

EPOCHS = 6


@dataclass(frozen=True)
class Method:
    """settings: keys over the base · epochs: of its training · after: the method whose weights of
    the same fold it starts from, whose seconds count, too · names: where it looks at the label
    text, whose"""

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: int = EPOCHS
    after: str | None = None
    names: Names | None = None


COSINE = {"model.head": "cosine", "model.cosine_scale": 30.0}
BALANCED = {"train.criterion": {"name": "balanced_softmax"}}
PACO = BALANCED | {"model.network": "paco", "train.second_sampler": "same"}
RANDAUGMENT = {"train.augment": {"policy": {"name": "randaugment"}, "color_jitter": 0}}
QUARTER = {"model.network": {"name": "fbsd", "widths": [128, 256, 128]}}  # the body is small, too


def margin(power: float) -> dict[str, Any]:
    """ArcFace whose margins grow as classes get rarer; power 0: all alike."""
    return {"train.criterion": {"name": "arcface", "margin": 0.3, "power": power}}


BOTH = {"experiment": ["birds_lt/posthoc", "plain/posthoc"]}  # neither has the class prior in it
ALONE = {"experiment": "plain"}


def distilled(title: str, keys: dict[str, Any], settings: dict[str, Any] | None = None) -> Method:
    settings = {"train.distill": keys} | (settings or {})
    return Method(f"distilled from {title}, 12 epochs", settings, 12)


DISTILLED = {
    "distill": distilled("two", BOTH),
    "distill_only": distilled("two, without labels", BOTH | {"weight": 1.0}),
    "distill_balanced": distilled("two, with balanced softmax", BOTH, BALANCED),
    "distill_plain": distilled("plain", ALONE),
    "distill_prior": distilled("plain without its prior", ALONE | {"balance": "prior"}),
    "distill_weights": distilled("plain, classes weighed", ALONE | {"balance": "weights"}),
    "distill_same": distilled("plain, same views", ALONE | {"views": "same"}),
}
TEXT = {"model.head_init": {"name": "text"}}
MEANS = {"model.head_init": {"name": "class_means"}}
EMBEDDED = {"model.head": "label_embedding"}


def started(title: str, settings: dict[str, Any], names: Names | None = None) -> Method:
    title += ", names shuffled" * (names == "shuffled")
    return Method(f"{title}, 12 epochs", settings, 12, names=names)


STARTED = {  # what the head knows of its classes before training
    "balanced_class_means": started(
        "balanced softmax, linear head from class means", BALANCED | MEANS
    ),
    "class_means": started("linear head from class means", MEANS),
    "text": started("linear head from names", TEXT, "own"),
    "text_shuffled": started("linear head from names", TEXT, "shuffled"),
    "cosine": started("cosine head", COSINE),
    "cosine_class_means": started("cosine head from class means", COSINE | MEANS),
    "cosine_text": started("cosine head from names", COSINE | TEXT, "own"),
    "cosine_text_shuffled": started("cosine head from names", COSINE | TEXT, "shuffled"),
    "label_embedding": started("label embedding", EMBEDDED, "own"),
    "label_embedding_shuffled": started("label embedding", EMBEDDED, "shuffled"),
}
METHODS = {
    "plain": Method("plain"),
    **{f"plain_{n}": Method(f"plain, {n} epochs", epochs=n) for n in (12, 24)},
    "balanced_12": Method("balanced softmax, 12 epochs", BALANCED, 12),
    "paco": Method("GPaCo", PACO),
    "mmal": Method("MMAL-Net", {"model.network": "mmal"}),
    "plain_mmal": Method("plain, then MMAL-Net", {"model.network": "mmal"}, 3, after="plain"),
    "fbsd": Method("FBSM/FDM, heads a quarter as wide", QUARTER),
    "arcface": Method("ArcFace", COSINE | margin(0.0)),
    "subcentre": Method(
        "sub-centre ArcFace, margins by rarity", COSINE | {"model.head": "subcentre"} | margin(0.25)
    ),
    "gem": Method("GeM pooling", {"model.pooling": "gem"}),
    "randaugment": Method("RandAugment", RANDAUGMENT),
    "progressive": Method(
        "progressive resizing, 96 to 128 px", {"train.resizing": [{"size": 96, "share": 0.5}]}
    ),
    **STARTED,
    **DISTILLED,
}
