"""What this machine says: the backbone whose weights are here, the batch that fits, the hours."""

import os

import numpy as np
import timm

from src.artifacts.hub import hub_or_cache
from src.config.auto import BALANCED, RULES, Facts
from src.config.model import Model
from src.errors import some
from src.networks.cost import bytes_per_image, device, free_memory, images_per_second, parameters
from src.networks.on_disk import LOCAL, OnDisk, weights_on_disk
from src.prepare.doctor.choice import Choice
from src.prepare.doctor.looks import Looks, framing, image_size
from src.progress import duration

LARGEST = {"cuda": 448, "cpu": 192}  # pixels that train in reasonable time
USUAL = {"cuda": "resnet50.a1_in1k", "cpu": "mobilenetv2_100.ra_in1k"}  # from the hub
TINY = 40  # pixels; what ImageNet's networks see in such images is too coarse
SMALLEST = 96  # for what was pretrained on ImageNet: the last map has 3 x 3 pixels
SHARE = 0.5  # of the free memory, for what training keeps of images


def network(looks: Looks) -> tuple[list[Choice], Model]:
    """The keys of the section model."""
    if looks.side <= TINY:
        why = f"images of {looks.side} pixels are too small for what was pretrained on ImageNet"
        size = image_size(looks, LARGEST["cpu"])
        model = Model(backbone="cifar_resnet20", pretrained=False, image_size=size.value)
        return [
            Choice("model.backbone", model.backbone, why),
            Choice("model.pretrained", False, "this network has no weights on the hub"),
            size,
            *framing(looks),
        ], model
    here = weights_on_disk()
    one, why = _best(here) if here else _from_hub()
    size = image_size(looks, LARGEST[device()])
    if size.value < SMALLEST:
        why_size = f"{size.why}; they are enlarged, as these networks halve a side five times"
        size = Choice(size.key, SMALLEST, why_size)
    fixed = timm.get_pretrained_cfg(one.backbone)
    if fixed is not None and fixed.fixed_input_size:
        size = Choice(size.key, fixed.input_size[1], f"{one.backbone} takes no other; {size.why}")
    keys = {"backbone": one.backbone, "pretrained": one.pretrained, "image_size": size.value}
    keys |= {"kwargs": one.kwargs} if one.kwargs else {}
    choices = [
        Choice("model.backbone", one.backbone, why),
        Choice("model.pretrained", one.pretrained, one.why, _others(here, one)),
    ]
    if one.kwargs:
        choices.append(Choice("model.kwargs", one.kwargs, "these weights need it, see above"))
    for key, value in (("mean", one.mean), ("std", one.std)):
        if value:
            choices.append(Choice(f"model.{key}", list(value), "of pixels, as the weights expect"))
    return [*choices, size, *framing(looks)], Model(**keys)


def training(
    model: Model, metric: str, counts: np.ndarray, k: int, looks: Looks
) -> tuple[list[Choice], str, float]:
    """The keys of the section train, those of `auto` by its rules, a sentence about hours, and the
    seconds that 02 takes."""
    images, where = int(counts.sum()), device()
    ratio = float(counts.max() / counts.min())
    alike, known = metric in BALANCED, model.pretrained is not False
    facts = Facts(images, len(counts), ratio, looks.side, alike, known)
    criterion, balance = RULES["train.criterion"](facts)
    usual, steps = RULES["train.batch_size"](facts)
    epochs, reason = RULES["train.epochs"](facts)
    free, each = free_memory(), bytes_per_image(model)
    fits = max(1, int(SHARE * free / each))
    batch = min(usual, _power(fits))
    why = (
        f"training keeps about {each / 2**20:.0f} MiB of an image of {model.image_size} pixels, "
        f"and {free / 2**30:.1f} GiB of the {'GPU' if where == 'cuda' else 'memory'} are free: "
        f"{fits} images would fit"
    )
    if batch == usual:
        why += f"; {steps}"
    speed = images_per_second(model, len(counts))
    cores = os.cpu_count() or 1
    rate = 1 / max(1 / speed, looks.seconds / cores)
    if where == "cpu":  # the same cores open images
        rate = 1 / (1 / speed + looks.seconds / cores)
    seconds = images * (k - 1) * epochs / rate
    here, load = "one GPU" if where == "cuda" else "the CPU", os.getloadavg()[0]
    busy = f", which is busy (load {load:.0f}, {cores} cores) and alone is faster"
    cost = (
        f"a few steps trained {speed:.3g} images/s on {here}{busy * (load > cores)}, and "
        f"an image takes {1000 * looks.seconds:.0f} ms to open: 02 takes about "
        f"{duration(seconds)} for {k} folds of {epochs} epochs, {duration(seconds / k)} for one, "
        "with --folds 0"
    )
    return (
        [
            Choice("train.criterion", criterion["name"], balance),
            Choice("train.batch_size", batch, why),
            Choice("train.epochs", epochs, f"{reason}; {cost}"),
        ],
        cost,
        seconds,
    )


def _best(here: list[OnDisk]) -> tuple[OnDisk, str]:
    """On a CPU the smallest, on a GPU the largest that fits well."""
    size = {id(one): parameters(Model(backbone=one.backbone, kwargs=one.kwargs)) for one in here}
    local = [one for one in here if one.pretrained is not True] or here
    if device() == "cpu":
        best = min(local, key=lambda one: size[id(one)])
        which = "the smallest of them, as there is no GPU"
    else:
        fine = [one for one in here if size[id(one)] < 1e8] or here
        best = max(fine, key=lambda one: size[id(one)])
        which = "the largest of them below 100 million parameters"
    why = f"its weights are on this machine ({size[id(best)] / 1e6:.1f} million parameters)"
    return best, why + (f"; {which}" if len(here) > 1 else "")


def _from_hub() -> tuple[OnDisk, str]:
    name = USUAL[device()]
    why = f"no weights of a timm model are on this machine (looked in {LOCAL} and in the caches of "
    why += "the hub and of torch.hub); this one is a good start"
    if hub_or_cache():
        return OnDisk(name, True, why="02 fetches them from the hub, which answers"), why
    said = (
        "02 fetches them from the hub, which does NOT answer now. Without a network put a file of "
        f"them into {LOCAL} and inspect again, or start from random weights, which learn far less"
    )
    return OnDisk(name, True, why=said), why


def _others(here: list[OnDisk], one: OnDisk) -> tuple[str, ...]:
    if not here:
        return ("pretrained: false",)
    rest = [f"{o.backbone} ({o.pretrained})" for o in here if o is not one]
    return (f"also on this machine: {some(rest, 6)}",) if rest else ()


def _power(number: int) -> int:
    """The largest power of two that is not above it; 1 for less."""
    return 1 << (max(1, number).bit_length() - 1)
