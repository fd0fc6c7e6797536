"""Weights on disk: ours, which know what they are, and other people's, which do not.

`weights.safetensors` carries in its header the model section of the config, the preprocessing and
the hash of classes.csv, so that 03 and 05 need nothing else to rebuild the network.
"""

from pathlib import Path

import torch
from safetensors.torch import save
from timm.models import load_state_dict

from src.artifacts.dataset import FULL, Dataset
from src.artifacts.files import sha256, write_bytes
from src.artifacts.tensors import header, read_tensors
from src.artifacts.work import RUNS, require
from src.config.model import Model
from src.config.tree import dump_config
from src.data.transforms import Preprocessing, preprocessing_from
from src.errors import UserError, shortened, some
from src.metrics import bin_numbers
from src.networks import build_network
from src.networks.base import Network

NEEDED = {"model": dict, "preprocessing": dict, "classes_sha256": str}
AGAIN = "run 02 again with --overwrite"


def save_network(path: Path, network: Network, model: Model, prep: Preprocessing, data: Dataset):
    """Write weights.safetensors."""
    about = {
        "model": dump_config(model),
        "preprocessing": prep.as_dict(),
        "classes_sha256": sha256(data.directory / "classes.csv"),
        "num_classes": data.num_classes,
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    return write_bytes(path, save(tensors, header(about)))


def load_network(path: Path, data: Dataset) -> tuple[Network, Preprocessing]:
    """Rebuild a network that 02 saved, in eval mode.

    Errors: UserError when the file is damaged or was trained on other classes.
    """
    about, tensors = _read_ours(require(path, "02_train_stage1.py"))
    if about["classes_sha256"] != sha256(data.directory / "classes.csv"):
        raise UserError(
            f"{path}: trained on other classes than {data.directory / 'classes.csv'} lists; "
            "run 02 again with --overwrite"
        )
    bins = bin_numbers(data.classes["bin"])
    try:
        model, prep = Model(**about["model"]), preprocessing_from(about["preprocessing"])
        network, _ = build_network(model, data.num_classes, bins)
        network.load_state_dict(tensors)
    except (ValueError, TypeError, KeyError, RuntimeError, UserError) as error:
        raise UserError(
            f"{path}: the network in it cannot be built, it is damaged or of another version "
            f"({shortened(str(error), 400)}); {AGAIN}"
        ) from error
    return network.eval(), prep


def _read_ours(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    about, tensors = read_tensors(path, "pt", AGAIN)
    if about is None:
        raise UserError(f"{path}: not written by 02; it carries no header of ours")
    for key, kind in NEEDED.items():
        if not isinstance(about.get(key), kind):
            raise UserError(
                f"{path}: damaged, its header has {shortened(repr(about.get(key)))} for `{key}`; "
                f"{AGAIN}"
            )
    return about, tensors


def load_pretrained(network: Network, model: Model, dataset: str, fold_name: str) -> str:
    """Fill a fresh network from `model.pretrained`; returns what to print about it.

    A head of another shape keeps its fresh weights. Errors: UserError when the file is missing or
    fewer than half of the backbone's weights are in it.
    """
    source = model.pretrained
    if isinstance(source, bool):
        return "pretrained weights from timm's hub" if source else "random weights"
    if source.startswith("experiment:"):
        path = _experiment_weights(source.removeprefix("experiment:"), dataset, fold_name)
        _, state = _read_ours(path)
    else:
        path = Path(source)
        if not path.is_file():
            raise UserError(
                f"model.pretrained: {path} is missing (working directory {Path.cwd()}). Put the "
                "weights there, or set model.pretrained=true to fetch timm's, or false"
            )
        state = {f"backbone.{key}": tensor for key, tensor in _read_theirs(path).items()}
    return f"{path}: {_fill(network, network.adopt(state), path)}"


def _read_theirs(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, of a .safetensors file or of what `torch.save` wrote."""
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
    found = sorted(stage1.glob("*/weights.safetensors"))
    if not found:
        raise UserError(f"model.pretrained: no weights under {stage1}; run 02 of it first")
    return next((p for p in found if p.parent.name == FULL), found[0])


def _fill(target: Network, state: dict[str, torch.Tensor], path: Path) -> str:
    own = target.state_dict()
    other = {_layer(k) for k, v in state.items() if k in own and own[k].shape != v.shape}
    reshaped = sorted(k for k in own if k in state and _layer(k) in other)  # the bias, too
    usable = {k: v for k, v in state.items() if k in own and k not in reshaped}
    missing = sorted(own.keys() - state.keys())
    unused = sorted(state.keys() - own.keys())
    body = [k for k in own if not k.startswith("classifier.")]
    if sum(k in usable for k in body) < len(body) / 2:
        raise UserError(
            f"{path}: only {len(usable)} of the network's {len(own)} tensors are in it. Missing: "
            f"{some(missing)}; of another shape: {some(reshaped)}; in the file only: "
            f"{some(unused)}. Is it a file for model.backbone, with the same model.kwargs?"
        )
    target.load_state_dict(usable, strict=False)  # what differs is named in the line printed
    parts = [f"loaded {len(usable)} of {len(own)} tensors"]
    for what, keys in (("fresh", missing), ("fresh, other shape", reshaped), ("unused", unused)):
        if keys:
            parts.append(f"{what}: {some(keys)}")
    return "; ".join(parts)


def _layer(key: str) -> str:
    return key.rpartition(".")[0]
