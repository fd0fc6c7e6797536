"""Weights on disk: ours, which know what they are, and other people's, which do not.

`weights.safetensors` carries in its header the model section of the config, the preprocessing and
the hash of classes.csv, so that 03 and 05 need nothing else to rebuild the network.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models import load_state_dict

from src.artifacts.dataset import FULL, Dataset
from src.artifacts.files import sha256, write_bytes
from src.artifacts.work import RUNS, checked, require
from src.config.model import Model
from src.config.tree import dump_config
from src.config.upgrade import upgraded_model
from src.data.transforms import Preprocessing, preprocessing_from
from src.errors import UserError, some
from src.networks import build_network
from src.networks.base import Network

HEADER = "longtail"  # one key: several would be written in a random order


def save_network(path: Path, network: Network, model: Model, prep: Preprocessing, data: Dataset):
    """Write weights.safetensors."""
    about = {
        "model": dump_config(model),
        "preprocessing": prep.as_dict(),
        "classes_sha256": sha256(data.directory / "classes.csv"),
        "num_classes": data.num_classes,
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    return write_bytes(path, save(tensors, {HEADER: json.dumps(about)}))


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
    model = Model(**upgraded_model(about["model"]))
    network, _ = build_network(model, data.classes_of(data.images))
    network.load_state_dict(tensors)
    return network.eval(), preprocessing_from(about["preprocessing"])


def _read_ours(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    try:
        with safe_open(checked(path), "pt") as file:
            about = (file.metadata() or {}).get(HEADER)
            if about is None:
                raise UserError(f"{path}: not written by 02; it carries no `{HEADER}` header")
            return json.loads(about), {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise UserError(f"{path}: damaged weights file ({error}); run 02 again") from error


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
        state = load_state_dict(str(path), use_ema=True, weights_only=True)
        state = {f"backbone.{key}": tensor for key, tensor in state.items()}
    return f"{path}: {_fill(network, network.adopt(state), path)}"


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
