"""Networks against their plain backbones: time and peak memory of a training and of an inference
step.

    python benchmarks/networks.py                        # every case, on a GPU if there is one
    python benchmarks/networks.py --cases mmal birds_mmal --rounds 5

A network is set against the plain one on the same backbone that makes the same passes: as many
images of the same sizes, losses summed, one backward pass. What remains is the network's own work.
Both take turns in one process and ratios are medians over the pairs, so that the load of the
machine cancels. `own` is the share of the network's step that is spent in the functions that find
boxes or tokens, boost stripes or compare maps, by a clock around their forward pass. Peak memory is
what one training step adds to a process that does nothing else (on a GPU, to its tensors).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/networks.py`

from benchmarks.results import RESULTS, markdown, provenance, write_section
from src import cli
from src.artifacts.dataset import Classes
from src.config.read import parse_config
from src.data.dataset import Batch
from src.losses import build_criterion
from src.networks.base import Network, Progress
from src.networks.build import build_network
from src.networks.transfg import overlap

CLASSES = 200  # of CUB
Passes = tuple[tuple[float, float], ...]  # images over those of the batch · pixels of a side over
ONE: Passes = ((1, 1),)


@dataclass(frozen=True)
class Case:
    """model, train: sections of the config, of which the plain network has no network and nothing
    of train · passes: of a training and an inference step · own: functions whose seconds are
    counted apart · stride: of the patches, which a plain ViT then has, too"""

    title: str
    model: dict[str, Any]
    batch: int
    train: dict[str, Any] = field(default_factory=dict)
    passes: tuple[Passes, Passes] = (ONE, ONE)
    own: tuple[str, ...] = ()
    stride: int = 0


R50 = {"backbone": "resnet50", "image_size": 448}
VIT = {"backbone": "vit_small_patch16_224", "image_size": 448}
VIT_BASE = VIT | {"backbone": "vit_base_patch16_224"}
BIRDS = {"backbone": "mobilenetv2_100", "kwargs": {"pad_type": "same"}, "image_size": 128}
LOOKS: Passes = ((1, 1), (1, 1))  # MMAL-Net: the image, the object
PARTS: Passes = (*LOOKS, (7, 0.5))
BOXES = ("src.networks.mmal.object_boxes", "src.networks.windows.PartWindows.forward")
FORWARD = ("src.networks.stripes.FBSM.forward", "src.networks.fbsd.diversify")  # not backward
PAIRS = {"second_sampler": "same", "criterion": {"name": "balanced_softmax"}}
CASES = {
    "mmal": Case("MMAL-Net, resnet50, 448 px", R50 | {"network": "mmal"}, 2,
                 passes=(PARTS, LOOKS), own=BOXES),
    "fbsd": Case("FBSM/FDM, resnet50, 448 px", R50 | {"network": "fbsd"}, 2, own=FORWARD),
    "transfg": Case("TransFG, vit_small, 448 px, stride 12", VIT | {"network": "transfg"}, 2,
                    own=("src.networks.transfg.class_row",), stride=12),
    "transfg_base": Case("TransFG, vit_base, 448 px, stride 12", VIT_BASE | {"network": "transfg"},
                         2, own=("src.networks.transfg.class_row",), stride=12),
    "birds_mmal": Case("MMAL-Net, mobilenetv2_100, 128 px", BIRDS | {"network": "mmal"}, 16,
                       passes=(PARTS, LOOKS), own=BOXES),
    "birds_fbsd": Case("FBSM/FDM, mobilenetv2_100, 128 px", BIRDS | {"network": "fbsd"}, 16),
    "birds_paco": Case("GPaCo, mobilenetv2_100, 128 px", BIRDS | {"network": "paco"}, 16, PAIRS,
                       (((2, 1),), ONE)),
}  # fmt: skip


class Step:
    """One network on random images and labels, in its training or evaluation."""

    def __init__(self, case: Case, plain: bool, device: torch.device):
        model = {k: v for k, v in case.model.items() if not (plain and k == "network")}
        train = {} if plain else case.train
        config = parse_config({"model": {"pretrained": False} | model, "train": train})
        names, counts = tuple(map(str, range(CLASSES))), np.arange(CLASSES, 0, -1)
        classes = Classes(CLASSES, np.arange(CLASSES) * 3 // CLASSES, names, counts)
        torch.manual_seed(0)
        network, _ = build_network(config.model, classes)
        if plain and case.stride:
            overlap(network.backbone, case.stride, 2 * (config.model.image_size,))
        self.network: Network = network.to(device).to(memory_format=torch.channels_last)
        self.criterion: nn.Module = build_criterion(config, classes).to(device)
        self.size, self.batch, self.device = config.model.image_size, case.batch, device
        self.passes = case.passes if plain else (ONE, ONE)
        self.two = config.train.second_sampler is not None

    def images(self, share: float, scale: float) -> Batch:
        side, count = round(self.size * scale), round(self.batch * share)
        images = torch.randn(count, 3, side, side, device=self.device)
        labels = torch.arange(count, device=self.device) % CLASSES
        return Batch(images.contiguous(memory_format=torch.channels_last), labels)

    def training(self) -> float:
        """Seconds of forward and backward passes."""
        batches = [self.images(*each) for each in self.passes[0]]
        if self.two:
            batches[0].other = self.images(1, 1)
        self.network.train()
        began = self.now()
        with autocast(self.device):
            later = Progress(5, 500, 0.5, 10)  # past the epochs in which a network warms up
            terms = [self.network.loss(b, self.criterion, later)[0] for b in batches]
        sum(sum(t.values()) for t in terms).backward()
        seconds = self.now() - began
        self.network.zero_grad()
        return seconds

    @torch.inference_mode()
    def inference(self) -> float:
        batches = [self.images(*each) for each in self.passes[1]]
        self.network.eval()
        began = self.now()
        with autocast(self.device):
            for batch in batches:
                self.network(batch.images)
        return self.now() - began

    def now(self) -> float:
        """Seconds, after the device has done all it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on a GPU, as 02 would choose; float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Clock:
    """Seconds spent in some functions while it is open."""

    def __init__(self, step: Step, names: tuple[str, ...]):
        self.step, self.names, self.seconds = step, names, 0.0

    def __enter__(self) -> "Clock":
        self.stack = ExitStack()
        for name in self.names:
            self.stack.enter_context(mock.patch(name, self.around(resolve_name(name))))
        return self

    def __exit__(self, *error) -> None:
        self.stack.close()

    def around(self, function):
        def timed(*args, **kwargs):
            began = self.step.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += self.step.now() - began

        return timed


def compare(case: Case, rounds: int, device: torch.device) -> dict[str, float]:
    """Medians over the rounds; the first is not counted."""
    plain, own = Step(case, True, device), Step(case, False, device)
    ratios: dict[str, list[float]] = {"training": [], "inference": [], "own": []}
    for _ in range(rounds + 1):
        base = plain.training()
        with Clock(own, case.own) as clock:
            seconds = own.training()
        ratios["training"].append(seconds / base)
        ratios["own"].append(clock.seconds / seconds)
        base = plain.inference()
        ratios["inference"].append(own.inference() / base)
    return {name: statistics.median(found[1:]) for name, found in ratios.items()}


def peak(case: Case, plain: bool, device: torch.device) -> float:
    """MiB that a training step adds, in this process."""
    step = Step(case, plain, device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        step.training()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    before = resident("VmRSS")
    step.training()
    return resident("VmHWM") - before


def resident(key: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 2**10


def memory(name: str) -> float:
    """Peak memory of a network's training step over the plain one's, each in a fresh process."""
    command = [sys.executable, __file__, "--peak", name]
    found = []
    for extra in ([], ["--plain"]):
        out = subprocess.run([*command, *extra], capture_output=True, text=True, check=True).stdout
        found.append(json.loads(out.splitlines()[-1]))
    return found[0] / found[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE",
                        help=f"of {', '.join(CASES)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="pairs that are timed (default: 5)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    parser.add_argument("--peak", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.peak:
        print(json.dumps(peak(CASES[args.peak], args.plain, device)))
        return
    rows = []
    for name in args.cases:
        case = CASES[name]
        found = compare(case, args.rounds, device)
        rows.append({
            "network": case.title,
            "passes": _passes(case.passes[0]),
            "training step": found["training"],
            "of it own": f"{100 * found['own']:.1f} %" if case.own else "",
            "inference step": found["inference"],
            "peak memory, training": memory(name),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    body = f"{provenance()}\n\nRatios to the plain network on the same backbone that makes the "
    body += "same passes (images × side of each, over those of the batch). Medians of "
    body += f"{args.rounds} pairs.\n\n{markdown(rows, 2)}"
    kind = "cuda" if device.type == "cuda" else "cpu"
    title = "Networks against their backbones"
    print(write_section(f"networks {kind}", title, body, args.out))


def _passes(passes: Passes) -> str:
    return " + ".join(f"{n:g} × {s:g}" for n, s in passes)


if __name__ == "__main__":
    cli.run(main)
