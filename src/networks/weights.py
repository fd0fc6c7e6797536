"""Weights on disk: ours, which know what they are, and other people's, which do not.

`weights.safetensors` carries in its header the model section of the config, the preprocessing and
the hash of classes.csv, so that 03 and 05 need nothing else to rebuild the network. Of a partly
frozen network it holds what was trained, and the header names where the rest is from and its hash.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save

from src.artifacts.dataset import Dataset, dataset_dir, load_dataset
from src.artifacts.files import sha256, write_bytes
from src.artifacts.tensors import AGAIN, header, read_shapes
from src.artifacts.work import require
from src.config.model import Model, check_weights_file
from src.config.tree import dump_config
from src.config.upgrade import upgraded_model
from src.data.transforms import Preprocessing, preprocessing_from
from src.errors import UserError, shortened
from src.networks.base import Network
from src.networks.build import NETWORKS, blank_network, build_network
from src.networks.clip_towers import from_checkpoint, is_open_clip
from src.networks.convert import converted
from src.networks.freeze import Rest, tensors_sha256, trained
from src.networks.origins import (
    EXPERIMENT,
    check_backbone,
    model_of,
    read_ours,
    read_theirs,
    rows_of,
    source_of,
)
from src.networks.transfer import WarmStart, take, translated
from src.networks.tuning.lora import merged

HUB = "timm's hub"


def save_network(
    path: Path,
    network: Network,
    model: Model,
    prep: Preprocessing,
    data: Dataset,
    rest: Rest | None = None,
) -> Path:
    """Write weights.safetensors, without the rest and what training alone needs."""
    about = {
        "model": dump_config(model),
        "preprocessing": prep.as_dict(),
        "classes_sha256": sha256(data.directory / "classes.csv"),
        "num_classes": data.num_classes,
    }
    if network.text_width:
        about["text_width"] = network.text_width
    if rest is not None:
        about["frozen"] = rest.facts()
    state = trained(network.state_dict(), rest)
    state = {k: v for k, v in state.items() if not k.startswith(network.training_only)}
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    return write_bytes(path, save(tensors, header(about)))


def load_network(path: Path, data: Dataset) -> tuple[Network, Preprocessing]:
    """Rebuild a network that 02 saved, in eval mode. What it needs of the label text is among its
    tensors, so that it is built on zeros of the same width.

    Errors: UserError when the file is damaged or was trained on other classes, or when what was
    frozen is not where it came from any more.
    """
    about, tensors = read_ours(require(path, "02_train_stage1.py"))
    if about["classes_sha256"] != sha256(data.directory / "classes.csv"):
        raise UserError(
            f"{path}: trained on other classes than {data.directory / 'classes.csv'} lists; {AGAIN}"
        )
    rest = about.get("frozen")  # None: the file holds everything
    try:
        model = Model(**upgraded_model(about["model"]))
        prep = preprocessing_from(about["preprocessing"])
        classes = data.classes_of(data.images)
        if width := about.get("text_width"):
            classes = replace(classes, text=np.zeros((data.num_classes, width), np.float32))
        build = partial(build_network, model, classes)
        if rest is None:
            network, _ = build()
            network.load_state_dict(tensors)
    except (ValueError, TypeError, KeyError, RuntimeError, UserError) as error:
        raise UserError(
            f"{path}: the network in it cannot be built, it is damaged or of another version "
            f"({shortened(str(error), 400)}); {AGAIN}"
        ) from error
    if rest is not None:
        network = _with_rest(build, model, rest, tensors, path, data.directory)
    return network.eval(), prep


def rest_of(path: Path, network: Network) -> Rest | None:
    """What of a network its file at `path` leaves out, from the header alone."""
    about, shapes = read_shapes(path, AGAIN)
    facts = (about or {}).get("frozen")
    return facts and Rest(frozenset(network.state_dict().keys() - shapes.keys()), **facts)


def _with_rest(
    build: Callable[..., tuple[Network, Preprocessing]],
    model: Model,
    rest: dict,
    tensors: dict,
    path: Path,
    folds: Path,
) -> Network:
    """A network of what was trained and, from where 02 had it, the rest.

    Errors: UserError that names the source and its hash, when it is missing or another one.
    """
    source, hub = rest["source"], model.pretrained is True and not is_open_clip(model.backbone)
    digest = f"tensors' sha256 {rest['sha256']}" if hub else f"sha256 {rest['source_sha256']}"
    holds = f"{path} holds what was trained; what was frozen comes from {source}, {digest}"
    if model.pretrained is True and not hub:  # wherever the cache is now
        source = str(source_of(model, "", ""))
    if not hub and not Path(source).is_file():
        raise UserError(f"{holds}, which is missing; put it there (from {Path.cwd()})")
    try:
        network, _ = build(pretrained=hub)
        if not hub:
            _start(network, model, Path(source), folds)
    except UserError as error:
        raise UserError(f"{holds}, and that failed: {error}") from error
    own = network.state_dict()
    if tensors_sha256({k: v for k, v in own.items() if k not in tensors}) != rest["sha256"]:
        now = None if hub else sha256(source)
        if now == rest["source_sha256"]:
            found = f"timm {timm.__version__} makes other tensors of it; install the one of 02"
        else:
            found = f"the file there now has {now}; bring back the right one"
        raise UserError(f"{holds}, but {found}, or {AGAIN}")
    network.load_state_dict(own | tensors)
    return network


def load_pretrained(network: Network, model: Model, dataset: str, fold_name: str) -> WarmStart:
    """Fill a fresh network from `model.pretrained`; returns what to print about it.

    Position embeddings of another image size are resampled as timm does. A head of another shape
    keeps its fresh weights, and so does any other tensor, which is then named; of classes see
    transfer.py. Errors: UserError when the file is missing, of another backbone, or has fewer than
    half of the backbone's weights.
    """
    path = source_of(model, dataset, fold_name)
    if path is None:
        return WarmStart(f"pretrained weights from {HUB}" if model.pretrained else "random weights")
    if str(model.pretrained).startswith(EXPERIMENT):
        check_backbone(model, network.state_dict(), path)
    return _start(network, model, path, dataset_dir(dataset))


def check_warm_start(model: Model, data: Dataset, fold_names: list[str]) -> None:
    """Errors: UserError when a fold has no weights to start from, or they are of an experiment on
    another backbone; no tensor is loaded for that."""
    if isinstance(model.pretrained, bool) or not fold_names:
        return
    check_weights_file(model.weights_file)
    ours = model.pretrained.startswith(EXPERIMENT)
    blank = blank_network(model, data.classes_of(data.images)) if ours else None
    for name in fold_names:
        path = source_of(model, data.directory.parent.name, name)
        if blank is not None:
            check_backbone(model, blank.state_dict(), path)


def _start(network: Network, model: Model, path: Path, folds: Path) -> WarmStart:
    """Fill a network from a file. folds: the directory with its classes.csv"""
    rows, rest = None, {}
    if str(model.pretrained).startswith(EXPERIMENT):
        about, state = read_ours(path)
        if "frozen" in about:
            state = load_network(path, load_dataset(path.parents[3].name))[0].state_dict()
        rows = rows_of(folds / "classes.csv", about, path)
        there = model_of(about, path)
        if there.tuning not in (None, model.tuning) and there.tuning.name == "lora":
            state = merged(state, there.tuning)
        kind = NETWORKS[there.network.name]
        state, rest = translated(network, state, kind)
    else:
        theirs = read_theirs(path)
        clip = is_open_clip(model.backbone)
        named = from_checkpoint(theirs) if clip else {f"backbone.{k}": v for k, v in theirs.items()}
        state = network.adopt(named)
    convert = partial(converted, network)
    return take(network, state, rows, str(path), convert, rest)


def frozen_rest(
    network: Network,
    build: Callable[[], Network],
    frozen: set[str],
    model: Model,
    dataset: str,
    fold_name: str,
) -> Rest | None:
    """Which of the `frozen` tensors of a network, as it begins, need not be saved: those that
    building and filling another one gives, too. None: none of them, as with random weights."""
    if not frozen or model.pretrained is False:
        return None
    again = build()
    load_pretrained(again, model, dataset, fold_name)
    own, other = network.state_dict(), again.state_dict()
    both = [name for name in frozen if name in other]  # not what training alone has
    rest = {name: own[name] for name in both if torch.equal(own[name], other[name])}
    if not rest:
        return None
    path = source_of(model, dataset, fold_name)
    source, digest = (f"{HUB} ({model.backbone})", None) if path is None else (path, sha256(path))
    return Rest(frozenset(rest), str(source), digest, tensors_sha256(rest))
