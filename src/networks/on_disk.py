"""Weights that are on this machine already: what stands in for the hub where there is no network,
and what a starting config takes."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open

from src.artifacts.hub import cached_timm

LOCAL = Path("data/weights")
ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class OnDisk:
    """Weights of a timm model, and the keys of the section model that take them.

    backbone: its name · pretrained: True where timm finds them in the hub's cache, else the file ·
    kwargs, mean, std: what they need beside it, and which timm does not know of them; empty, None:
    nothing · why: where that is from
    """

    backbone: str
    pretrained: bool | str
    kwargs: dict = field(default_factory=dict)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    why: str = ""


def weights_on_disk() -> list[OnDisk]:
    """In data/weights, in the hub's cache, and in that of torch.hub, in this order; only what is a
    model of timm. Tensors are not read."""
    files = sorted(p for p in LOCAL.glob("*") if p.suffix in ENDINGS and p.is_file())
    found = [_of_file(path) for path in files]
    found += [OnDisk(name, True, why="in the cache of the hub") for name in cached_timm()]
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    if checkpoints.is_dir():
        url = {Path(cfg.url).name: name for name, cfg in _configs() if cfg.url}
        there = sorted(path for path in checkpoints.iterdir() if path.name in url)
        why = "in the cache of torch.hub"
        found += [OnDisk(url[path.name], path.as_posix(), why=why) for path in there]
    return [one for one in found if timm.is_model(one.backbone)]


def instead_of_hub(backbone: str) -> str:
    """Which key would do where weights of `backbone` cannot be fetched."""
    architecture = backbone.split(".")[0]
    here = [one for one in weights_on_disk() if one.backbone.split(".")[0] == architecture]
    for one in here:
        if one.pretrained is not True:
            keys = {"mean": one.mean and list(one.mean), "std": one.std and list(one.std)}
            keys = {f"kwargs.{key}": value for key, value in one.kwargs.items()} | keys
            given = {"pretrained": one.pretrained} | {k: v for k, v in keys.items() if v}
            words = [f"model.{key}={value}".replace(", ", ",") for key, value in given.items()]
            return f"On this machine are others of it: --set {shlex.join(words)}"
        return f"On this machine are others of it: --set model.backbone={one.backbone}"
    return (
        f"Put a file of them at {LOCAL / architecture}.safetensors and set model.pretrained to it, "
        f"or bring the hub's cache along (HF_HOME), or set model.pretrained=false to start from "
        "random weights"
    )


def _of_file(path: Path) -> OnDisk:
    """By its name up to the first dot, and by what its header says: `timm`, `pad_type`, `mean`,
    `std`. TensorFlow's padding is in names, too: mobilenetv2_100.same."""
    about = _header(path)
    backbone = about.get("timm", path.name.split(".")[0])
    same = about.get("pad_type") == "same" or ".same." in path.name
    mean, std = (_three(about.get(key)) or (HALF if same else None) for key in ("mean", "std"))
    said = [key for key in ("timm", "pad_type", "mean", "std") if key in about]
    why = f"the header of the file says {', '.join(said)}" if said else "by the name of the file"
    if same and "pad_type" not in about:
        why += "; `same` in it is TensorFlow's padding, whose weights expect pixels from -1 to 1"
    kwargs = {"pad_type": "same"} if same else {}
    return OnDisk(backbone, path.as_posix(), kwargs, mean, std, why)


def _header(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _three(text: str | None) -> tuple[float, float, float] | None:
    """`0.5`, or `0.485, 0.456, 0.406`."""
    try:
        numbers = [float(word) for word in (text or "").strip("[]()").split(",")]
    except ValueError:
        return None
    return (
        tuple(numbers * 3) if len(numbers) == 1 else tuple(numbers) if len(numbers) == 3 else None
    )


def _configs():
    return ((name, timm.get_pretrained_cfg(name)) for name in timm.list_pretrained())
