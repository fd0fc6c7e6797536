"""What training a network costs on this machine: memory per image, and images per second."""

import os
import time

import torch
from torch import nn

from src.config.model import Model
from src.networks.backbone import build_backbone

BATCH = {"cuda": 32, "cpu": 4}  # images per step of the probe
STEPS = 20  # at most


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def free_memory() -> int:
    """Bytes: of the GPU, or of the machine where there is none."""
    if device() == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo") as file:
            rows = dict(line.split(":") for line in file)
        return int(rows["MemAvailable"].split()[0]) * 2**10
    except (OSError, KeyError, ValueError):  # no Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def parameters(model: Model) -> int:
    """Of the backbone, which is built without memory for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_backbone(model, pretrained=False).parameters())


def bytes_per_image(model: Model) -> int:
    """What training keeps of one image until its gradient is known, in fp32: about the outputs of
    all layers. Nothing is computed."""
    with torch.device("meta"):
        backbone = build_backbone(model, pretrained=False).train()
        total = [0]

        def add(_module, _inputs, output):
            total[0] += output.numel() * 4 if isinstance(output, torch.Tensor) else 0

        for module in backbone.modules():
            if not any(True for _ in module.children()):
                module.register_forward_hook(add)
        backbone(torch.zeros(2, 3, model.image_size, model.image_size))
    return total[0] // 2


def images_per_second(model: Model, classes: int, seconds: float = 4.0) -> float:
    """Forward and backward with a linear head: the fastest step of about so long, as other work on
    the machine slows some; the first, which warms up, does not count."""
    where = device()
    backbone = build_backbone(model, pretrained=False)
    network = nn.Sequential(backbone, nn.Linear(backbone.num_features, classes)).to(where).train()
    images = torch.randn(BATCH[where], 3, model.image_size, model.image_size, device=where)
    labels = torch.arange(BATCH[where], device=where) % classes
    began, spent = time.perf_counter(), []
    while len(spent) < 2 or (len(spent) <= STEPS and time.perf_counter() - began < seconds):
        start = time.perf_counter()
        with torch.autocast(where, torch.bfloat16, enabled=where == "cuda"):
            nn.functional.cross_entropy(network(images), labels).backward()
        if where == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    return BATCH[where] / min(spent[1:])
