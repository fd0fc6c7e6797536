"""Which choices of stage 1's training exclude each other, and which views it excludes."""

from src.config.distill import check_distill
from src.config.losses import AS_THEY_ARE, BETWEEN_COSINES, WEIGHTS, balancing
from src.config.pseudo import check_pseudo

# transforms of albumentations after which an image may stand on its head, or on its side
UPSIDE_DOWN = {"VerticalFlip", "D4", "SquareSymmetry"}
ON_ITS_SIDE = {"RandomRotate90", "D4", "SquareSymmetry", "Transpose"}


def check_training(train, model) -> None:
    """Errors: ValueError for choices in the sections train and model that exclude each other."""
    if train.criterion.name in BETWEEN_COSINES and model.head == "linear":
        raise ValueError(
            f"train.criterion {train.criterion.name} sets margins between cosines: it needs "
            "model.head=cosine or subcentre (and model.cosine_scale=30 or so), found head "
            f"{model.head}"
        )
    _check_balance(train)
    if not train.epochs:
        _check_untrained(train, model)
        return
    _check_deferred(train)
    _check_mixing(train)
    for auxiliary in train.auxiliaries:
        auxiliary.check(model, train)
    if train.pseudo.rounds:
        check_pseudo(train.pseudo, model, train)
    if train.distill.teachers:
        check_distill(train.distill, model, train)


def _check_untrained(train, model) -> None:
    """Errors: ValueError for a head that would stay at chance, and for rows to train on."""
    warm = isinstance(model.pretrained, str) and model.pretrained.startswith("experiment:")
    known = warm or model.network.captions  # what classes are called is enough
    if model.head_init.name == "random" and not known:
        raise ValueError(
            "train.epochs=0 trains nothing, and a random head knows no class: set "
            "model.head_init=class_means, which needs no training, or train.epochs=1 or more"
        )
    if train.pseudo.rounds:
        raise ValueError(
            "train.pseudo adds images to train on, and train.epochs=0 trains nothing; remove one"
        )
    if train.distill.teachers:
        raise ValueError(
            "train.distill teaches in every step, and train.epochs=0 makes none; remove one"
        )


def _check_balance(train) -> None:
    """A loss that balances needs batches that no sampler has balanced before."""
    if how := balancing(train.criterion):
        found, cure = f"criterion {train.criterion.name}", "criterion={name: cross_entropy}"
    elif train.deferred.weights:
        how, found, cure = WEIGHTS, "deferred.weights", "deferred.weights=false"
    else:
        return
    for key in ("sampler", "second_sampler"):
        sampler = getattr(train, key)
        if sampler not in AS_THEY_ARE:
            raise ValueError(
                f"train.{found} {how}, which is right for images drawn as they are; "
                f"train.{key}={sampler} balances the classes once more. Set "
                f"train.{key}=instance, or train.{cure}"
            )


def _check_deferred(train) -> None:
    deferred = train.deferred
    late = deferred.weights and deferred.start == 1
    if late or (deferred.sampling and deferred.start > (train.epochs - 1) / train.epochs):
        raise ValueError(
            f"train.deferred.start={deferred.start} is never reached by the {train.epochs} epochs "
            "of the training: sampling begins with an epoch, weights with a step; lower it"
        )
    if deferred.weights and deferred.sampling:
        raise ValueError(
            "train.deferred: weights and sampling both make classes count equally; together they "
            "do it twice, choose one"
        )
    if deferred.weights and train.criterion.name == "class_balanced":
        raise ValueError(
            "train.deferred.weights puts class weights on the criterion, and class_balanced has "
            "its own; use cross_entropy or focal"
        )
    if deferred.sampling and train.sampler in ("class_balanced", "progressive"):
        raise ValueError(
            "train.deferred.sampling switches to class_balanced, where train.sampler="
            f"{train.sampler} already {'is' if train.sampler == 'class_balanced' else 'goes'}"
        )
    if deferred.sampling and train.second_sampler not in (None, "same"):
        raise ValueError(
            "train.deferred.sampling replaces the sampler late, train.second_sampler adds one all "
            "along; which of two streams to switch is undefined, choose one"
        )


def _check_mixing(train) -> None:
    mixing = train.mixing
    for key in mixing.changed():
        if key.startswith("remix_") and not mixing.remix:
            raise ValueError(f"train.mixing.{key} is of remix, which is off; set remix=true")
        if key in ("probability", "off_epochs") and not mixing.alphas:
            raise ValueError(
                f"train.mixing.{key} says when images are mixed, and they are not; switch on "
                f"mixup, cutmix or manifold, or remove {key}"
            )
    if mixing.remix and not mixing.alphas:
        raise ValueError(
            "train.mixing.remix changes the labels of mixed images; switch on mixup, cutmix or "
            "manifold"
        )
    if mixing.alphas and mixing.off_epochs >= train.epochs:
        raise ValueError(
            f"train.mixing.off_epochs ({mixing.off_epochs}) must be below epochs "
            f"({train.epochs}), or no step is mixed"
        )
    if mixing.manifold and train.compile:
        raise ValueError(
            "train.mixing.manifold reaches into the network's layers, which train.compile hides; "
            "set train.compile=false"
        )


def check_views(tta, augment) -> None:
    """Views that no training image looked like: the network would be asked about what it never saw.

    Errors: ValueError for turns and vertical where train.augment has nothing of the kind.
    """
    extra = {one["name"] for one in augment.extra}
    if tta.vertical and not (augment.vflip or extra & UPSIDE_DOWN or augment.rotate == 180):
        raise ValueError(
            "predict.tta.vertical shows images upside down, and training never did; set "
            "vertical=false, or train with train.augment.vflip=true"
        )
    if tta.turns and not (augment.rotate >= 90 or extra & ON_ITS_SIDE):
        raise ValueError(
            f"predict.tta.turns turns images by 90 degrees and more, and training by at most "
            f"{augment.rotate:g}; set turns=false, or train with train.augment.rotate of 90 or more"
        )
