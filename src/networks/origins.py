"""Files that `model.pretrained` names: stage 1 of another experiment, or other people's weights.

Of an experiment the header says what its network was, so that one on another backbone is refused
before any tensor is loaded.
"""

from pathlib import Path

import torch
from timm.models import load_state_dict

from src.artifacts.dataset import FULL
from src.artifacts.files import read_table, sha256
from src.artifacts.tensors import AGAIN, read_shapes, read_tensors
from src.artifacts.work import RUNS, checked, made, require
from src.config.model import EXPERIMENT, Model, check_weights_file
from src.config.tree import dump_config, flatten
from src.config.upgrade import upgraded_model
from src.errors import UserError, shortened, some
from src.networks.clip_towers import is_open_clip, tag_weights
from src.networks.transfer import Rows, matched
from src.networks.tuning import added

NEEDED = {"model": dict, "preprocessing": dict, "classes_sha256": str}
SHAPING = ("kwargs", "anti_alias", "blur_kernel", "pooling", "network.width")  # in model
RESAMPLED = ("pos", "relative")  # tensors on a grid of the image have these in their names


def source_of(model: Model, dataset: str, fold_name: str) -> Path | None:
    """The file that a network starts from, if any; of open_clip's tags, the one in the cache."""
    if model.pretrained is True and is_open_clip(model.backbone):
        return tag_weights(model)
    if isinstance(model.pretrained, bool):
        return None
    if model.pretrained.startswith(EXPERIMENT):
        return _experiment_weights(model.pretrained.removeprefix(EXPERIMENT), dataset, fold_name)
    return model.weights_file


def _experiment_weights(name: str, dataset: str, fold_name: str) -> Path:
    """`<experiment>` or `<dataset>/<experiment>`: the same fold's weights of it.

    Within one dataset only the same fold will do: another fold's network has seen the images that
    are held out here. From another dataset any fold is honest.
    """
    other, _, experiment = name.rpartition("/")
    stage1 = RUNS / (other or dataset) / experiment / "stage1"
    same = stage1 / fold_name / "weights.safetensors"
    if same.is_file() or not other or other == dataset:
        return require(same, f"02_train_stage1.py (of {experiment}, {fold_name})")
    found = made(stage1, "weights.safetensors")
    if not found:
        raise UserError(f"model.pretrained: no weights under {stage1}; run 02 of it first")
    return next((p for p in found if p.parent.name == FULL), found[0])


def read_ours(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Header and tensors of a file that 02 wrote."""
    about, tensors = read_tensors(path, "pt", AGAIN)
    return _about(about, path), tensors


def _about(about: dict | None, path: Path) -> dict:
    if about is None:
        raise UserError(f"{path}: not written by 02; it carries no header of ours")
    for key, kind in NEEDED.items():
        if not isinstance(about.get(key), kind):
            raise UserError(
                f"{path}: damaged, its header has {shortened(repr(about.get(key)))} for `{key}`; "
                f"{AGAIN}"
            )
    return about


def model_of(about: dict, path: Path) -> Model:
    """The config of the network in one of our files."""
    try:
        return Model(**upgraded_model(about["model"]))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: the network in it cannot be built, it is damaged or of another version "
            f"({shortened(str(error), 400)}); {AGAIN}"
        ) from error


def read_theirs(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, of a .safetensors file or of what `torch.save` wrote."""
    check_weights_file(path)
    try:
        found = load_state_dict(str(path), use_ema=True, weights_only=True)
        tensors = {k: v for k, v in found.items() if isinstance(v, torch.Tensor)}
    except Exception as error:  # pickle, zipfile, torch and safetensors raise a dozen types
        raise UserError(
            f"model.pretrained: {path} cannot be read ({shortened(str(error))}). Expected the "
            "tensors of a network by name, as .safetensors, or as torch.save(model.state_dict()) "
            "writes them; download it again, or convert it"
        ) from error
    if not tensors:
        raise UserError(
            f"model.pretrained: {path} holds no tensors by name, found {some(list(found))}; save "
            "model.state_dict() instead"
        )
    return tensors


def rows_of(classes: Path, about: dict, path: Path) -> Rows | None:
    """Which classes of a network, that are listed in `classes`, its source at `path` knows."""
    if classes.is_file() and sha256(classes) == about["classes_sha256"]:
        return None
    there = path.parents[3] / "folds" / "classes.csv"  # runs/<dataset>/<experiment>/stage1/<fold>
    if not there.is_file() or sha256(there) != about["classes_sha256"]:
        which = "is missing" if not there.is_file() else "has changed since"
        return Rows([], [], f"new, as {there} {which} and its classes are not known")
    if not classes.is_file():
        return Rows([], [], f"new, as {classes} is missing")
    own, theirs = (read_table(checked(file), ("label",)) for file in (classes, there))
    return matched(*(t.sort_values("label")["class_id"].tolist() for t in (own, theirs)))


# ---- another backbone ---------------------------------------------------------------------------


def check_backbone(model: Model, own: dict[str, torch.Tensor], path: Path) -> None:
    """Errors: UserError, from the header alone, when the network of an experiment is on another
    backbone, or on one of that name with other shapes.

    own: state of the network that is to start from it. Names that differ are fine where all shapes
    agree but those of grids: vit_base_patch16_224 and _384.
    """
    about, theirs = read_shapes(path, AGAIN)
    there = model_of(_about(about, path), path)
    _check_tuning(model, there, path)
    own = {k: tuple(v.shape) for k, v in own.items() if k.startswith("backbone.") and not added(k)}
    unlike = [] if "frozen" in about else [  # what was frozen is not in the file
        k for k, shape in own.items()
        if theirs.get(k) != shape and not any(part in k for part in RESAMPLED)
    ]  # fmt: skip
    fit = f"{len(own) - len(unlike)} of {len(own)} tensors of the backbone fit"
    names = (model.backbone.split(".")[0], there.backbone.split(".")[0])
    if len(set(names)) > 1 and (unlike or "frozen" in about):
        raise UserError(
            f"model.pretrained={model.pretrained}: {path} was trained with model.backbone="
            f"{there.backbone}, and here it is {model.backbone} ({fit}). A warm start needs the "
            f"same backbone: set model.backbone={there.backbone}, or name an experiment with "
            f"{model.backbone}"
        )
    if len(unlike) > len(own) / 2:
        raise UserError(
            f"model.pretrained={model.pretrained}: {path} has {model.backbone} with other shapes "
            f"({fit}; {some(unlike)} do not). {_difference(model, there)}"
        )


def _check_tuning(model: Model, there: Model, path: Path) -> None:
    """Errors: UserError where what was added to the body there would be lost; LoRA becomes part of
    the weights (`merged`)."""
    theirs = there.tuning
    if theirs is None or not theirs.adds or theirs == model.tuning or theirs.name == "lora":
        return
    raise UserError(
        f"model.pretrained={model.pretrained}: {path} was trained with model.tuning={theirs.name}, "
        "and what that adds to the body has no place here; set model.tuning as there, "
        f"{dump_config(theirs)}, or start from what it started from"
    )


def _difference(model: Model, there: Model) -> str:
    values = [flatten(dump_config(m)) for m in (there, model)]
    keys = [k for k in {**values[0], **values[1]} if k.startswith(SHAPING)]
    found = [(k, *(v.get(k) for v in values)) for k in keys]
    parts = [f"model.{k} is {a!r} there and {b!r} here" for k, a, b in found if a != b]
    if "ride" in (model.network.name, there.network.name):
        parts.append(
            "experts of RIDE that start from random weights have fewer channels, so set "
            "model.network.width=1 in its config, or one width in both"
        )
    return f"What differs: {'; '.join(parts)}" if parts else "It may be of another version of timm"
