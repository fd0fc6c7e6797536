"""Weights on disk: ours, which know what they are, and other people's, which do not.

`weights.safetensors` carries in its header the model section of the config, the preprocessing and
the hash of classes.csv, so that 03 and 05 need nothing else to rebuild the network. Of a partly
frozen network it holds what was trained, and the header names where the rest is from and its hash.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from safetensors.torch import save
from timm.models import load_state_dict

from src.artifacts.dataset import FULL, Dataset, load_dataset
from src.artifacts.files import sha256, write_bytes
from src.artifacts.tensors import header, read_tensors
from src.artifacts.work import RUNS, require
from src.config.model import Model
from src.config.tree import dump_config
from src.config.upgrade import upgraded_model
from src.data.transforms import Preprocessing, preprocessing_from
from src.errors import UserError, shortened, some
from src.networks import build_network
from src.networks.base import Network
from src.networks.convert import converted
from src.networks.freeze import Rest, tensors_sha256, trained
from src.networks.heads import Cosine, Linear

HUB = "timm's hub"
EXPERIMENT = "experiment:"
NEEDED = {"model": dict, "preprocessing": dict, "classes_sha256": str}
AGAIN = "run 02 again with --overwrite"


def save_network(
    path: Path,
    network: Network,
    model: Model,
    prep: Preprocessing,
    data: Dataset,
    rest: Rest | None = None,
) -> Path:
    """Write weights.safetensors, without the rest."""
    about = {
        "model": dump_config(model),
        "preprocessing": prep.as_dict(),
        "classes_sha256": sha256(data.directory / "classes.csv"),
        "num_classes": data.num_classes,
    }
    if rest is not None:
        about["frozen"] = rest.facts()
    state = trained(network.state_dict(), rest)
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    return write_bytes(path, save(tensors, header(about)))


def load_network(path: Path, data: Dataset) -> tuple[Network, Preprocessing]:
    """Rebuild a network that 02 saved, in eval mode.

    Errors: UserError when the file is damaged or was trained on other classes, or when what was
    frozen is not where it came from any more.
    """
    about, tensors = _read_ours(require(path, "02_train_stage1.py"))
    if about["classes_sha256"] != sha256(data.directory / "classes.csv"):
        raise UserError(
            f"{path}: trained on other classes than {data.directory / 'classes.csv'} lists; "
            "run 02 again with --overwrite"
        )
    rest = about.get("frozen")  # None: the file holds everything
    try:
        model = Model(**upgraded_model(about["model"]))
        prep = preprocessing_from(about["preprocessing"])
        build = partial(build_network, model, data.classes_of(data.images))
        if rest is None:
            network, _ = build()
            network.load_state_dict(tensors)
    except (ValueError, TypeError, KeyError, RuntimeError, UserError) as error:
        raise UserError(
            f"{path}: the network in it cannot be built, it is damaged or of another version "
            f"({shortened(str(error), 400)}); {AGAIN}"
        ) from error
    if rest is not None:
        network = _with_rest(lambda hub: build(pretrained=hub)[0], model, rest, tensors, path)
    return network.eval(), prep


def _with_rest(
    build: Callable[[bool], Network], model: Model, rest: dict, tensors: dict, path: Path
) -> Network:
    """A network of what was trained and, from where 02 had it, the rest.

    Errors: UserError that names the source and its hash, when it is missing or another one.
    """
    source, hub = rest["source"], model.pretrained is True
    digest = f"tensors' sha256 {rest['sha256']}" if hub else f"sha256 {rest['source_sha256']}"
    holds = f"{path} holds what was trained; what was frozen comes from {source}, {digest}"
    if not hub and not Path(source).is_file():
        raise UserError(f"{holds}, which is missing; put it there (from {Path.cwd()})")
    try:
        network = build(hub)
        if not hub:
            _fill(network, converted(network, network.adopt(_state(model, Path(source)))), source)
    except UserError as error:
        raise UserError(f"{holds}, and that failed: {error}") from error
    own = network.state_dict()
    if tensors_sha256({k: v for k, v in own.items() if k not in tensors}) != rest["sha256"]:
        now = None if hub else sha256(source)
        if now == rest["source_sha256"]:
            found = f"timm {timm.__version__} makes other tensors of it; install the one of 02"
        else:
            found = f"the file there now has {now}; bring back the right one"
        raise UserError(f"{holds}, but {found}, or run 02 again with --overwrite")
    network.load_state_dict(own | tensors)
    return network


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

    Position embeddings of another image size are resampled as timm does. A head of another shape
    keeps its fresh weights, and so does any other tensor, which is then named. Errors: UserError
    when the file is missing or fewer than half of the backbone's weights are in it.
    """
    path = _source(model, dataset, fold_name)
    if path is None:
        return f"pretrained weights from {HUB}" if model.pretrained else "random weights"
    state = network.adopt(_state(model, path))
    return f"{path}: {_fill(network, converted(network, state), path)}"


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
    rest = {name: own[name] for name in frozen if torch.equal(own[name], other[name])}
    if not rest:
        return None
    path = _source(model, dataset, fold_name)
    source, digest = (f"{HUB} ({model.backbone})", None) if path is None else (path, sha256(path))
    return Rest(frozenset(rest), str(source), digest, tensors_sha256(rest))


def _source(model: Model, dataset: str, fold_name: str) -> Path | None:
    """The file that a network starts from, if any."""
    if isinstance(model.pretrained, bool):
        return None
    if model.pretrained.startswith(EXPERIMENT):
        return _experiment_weights(model.pretrained.removeprefix(EXPERIMENT), dataset, fold_name)
    return Path(model.pretrained)


def _state(model: Model, path: Path) -> dict[str, torch.Tensor]:
    """All weights of a source, under our names.

    Errors: UserError when it is missing, or a part of it that it takes from elsewhere.
    """
    if model.pretrained.startswith(EXPERIMENT):
        about, tensors = _read_ours(path)
        if "frozen" not in about:
            return tensors
        return load_network(path, load_dataset(path.parents[3].name))[0].state_dict()
    if not path.is_file():
        raise UserError(
            f"model.pretrained: {path} is missing (working directory {Path.cwd()}). Put the "
            "weights there, or set model.pretrained=true to fetch timm's, or false"
        )
    return {f"backbone.{key}": tensor for key, tensor in _read_theirs(path).items()}


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


def _fill(target: Network, state: dict[str, torch.Tensor], path: Path | str) -> str:
    own = target.state_dict()
    heads = {name for name, module in target.named_modules() if isinstance(module, Linear | Cosine)}
    other = {k for k, v in state.items() if k in own and own[k].shape != v.shape}
    whole = {_layer(k) for k in other} & heads  # a bias means nothing without its weight
    reshaped = sorted(k for k in own if k in state and (k in other or _layer(k) in whole))
    usable = {k: v for k, v in state.items() if k in own and k not in reshaped}
    missing = sorted(own.keys() - state.keys())
    unused = sorted(state.keys() - own.keys())
    names = {id(module): name for name, module in target.named_modules()}
    bodies = tuple(f"{names[id(body.module)]}." for body in target.bodies())
    body = [k for k in own if k.startswith(bodies)]
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
            parts.append(f"{what}: {some(keys, 20 if keys is reshaped else 3)}")
    return "; ".join(parts)


def _layer(key: str) -> str:
    return key.rpartition(".")[0]
