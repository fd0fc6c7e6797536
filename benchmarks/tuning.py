"""Parameter-efficient tuning against full fine-tuning: time and peak memory of a training step of
LIFT's recipe, and what lies on disk afterwards.

    python benchmarks/tuning.py                          # every case, on a GPU if there is one
    python benchmarks/tuning.py --cases lora --batch 4 --rounds 2

ViT-B/16 at 224 pixels, random weights: cosine head, logit adjustment, SGD with momentum; forward,
backward and optimizer. A case and full fine-tuning take turns in one process and ratios are medians
over the pairs, so that the load of the machine cancels. Peak memory is what a fresh process (on a
GPU, its tensors) gains at most from before it builds the network to after two steps: weights,
gradients, momentum, activations. On disk: weights.safetensors and last.pt of a run that started
from a file.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/tuning.py`

from benchmarks.networks import autocast, resident
from benchmarks.results import RESULTS, markdown, provenance, write_section
from src import cli
from src.artifacts.dataset import Classes
from src.config.read import parse_config
from src.config.schema import Config
from src.data.dataset import Batch
from src.losses import build_criterion
from src.networks.base import Network, Progress
from src.networks.build import build_network
from src.networks.freeze import freeze, trained
from src.networks.tuning.prefix import prefix_of
from src.networks.weights import frozen_rest, load_pretrained
from src.training.optim import build_optimizer

CLASSES = 100
MODEL = {"backbone": "vit_base_patch16_clip_quickgelu_224", "head": "cosine", "cosine_scale": 25}
TRAIN = {
    "criterion": "logit_adjusted", "optimizer": "sgd", "lr": 0.01, "nesterov": False,
    "weight_decay": 5e-4, "decay_all": True, "epochs": 10,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """kept: it trains on tokens of the frozen prefix, which are made before"""

    title: str
    tuning: dict[str, Any] | str | None
    kept: bool = False


FULL = Case("full fine-tuning", None)
CASES = {
    "adaptformer": Case("AdaptFormer, r 4 (LIFT)", "adaptformer"),
    "lora": Case("LoRA, r 8", "lora"),
    "prompts": Case("10 prompts, deep", "prompts"),
    "bias": Case("biases", "bias"),
    "layer_norm": Case("layer norms", "layer_norm"),
    "last_blocks": Case("last block", "last_blocks"),
    "last_blocks_kept": Case("last block, tokens before it kept", "last_blocks", kept=True),
}


def config_of(case: Case, extra: dict[str, Any]) -> Config:
    """extra: for the section model"""
    model = MODEL | {"pretrained": False, "tuning": case.tuning} | extra
    return parse_config({"model": model, "train": TRAIN})


def some_classes() -> Classes:
    """A tail of 1:100."""
    counts = np.round(500 * 0.01 ** (np.arange(CLASSES) / (CLASSES - 1))).astype(int)
    bins = np.arange(CLASSES) * 3 // CLASSES
    return Classes(CLASSES, bins, tuple(map(str, range(CLASSES))), counts)


class Step:
    """One network and its optimizer on random images, or on the tokens of its prefix."""

    def __init__(self, case: Case, batch: int, device: torch.device, extra: dict[str, Any]):
        config, classes = config_of(case, extra), some_classes()
        torch.manual_seed(0)
        self.network: Network = build_network(config.model, classes)[0].to(device)
        self.criterion = build_criterion(config, classes).to(device)
        self.optimizer = build_optimizer(config.train, self.network, self.network.bodies())
        side, self.device = config.model.image_size, device
        self.images = torch.randn(batch, 3, side, side, device=device)
        self.labels = torch.arange(batch, device=device) % CLASSES
        if case.kept:
            self.network.eval()
            self.network.prefix, self.images = prefix_of(self.network.backbone, self.images)

    def run(self) -> float:
        """Seconds of a step."""
        self.network.train()
        began = self.now()
        with autocast(self.device):
            batch = Batch(self.images, self.labels)
            terms, _ = self.network.loss(batch, self.criterion, Progress(5, 500, 0.5, 10))
        sum(terms.values()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.now() - began

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def ratio(case: Case, batch: int, rounds: int, device: torch.device, extra: dict) -> float:
    """Seconds of a step over those of full fine-tuning: the median over pairs; the first is not
    counted, in which momentum is made."""
    full, own = (Step(each, batch, device, extra) for each in (FULL, case))
    pairs = [(full.run(), own.run()) for _ in range(rounds + 1)]
    return statistics.median(b / a for a, b in pairs[1:])


def peak(case: Case, batch: int, device: torch.device, extra: dict) -> float:
    """MiB that this process gains."""
    if device.type == "cuda":
        step = Step(case, batch, device, extra)
        torch.cuda.reset_peak_memory_stats()  # what made kept tokens is gone
        step.run(), step.run()
        return torch.cuda.max_memory_allocated() / 2**20
    before = resident("VmRSS")
    step = Step(case, batch, device, extra)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    step.run(), step.run()
    return resident("VmHWM") - before


def on_disk(case: Case, folder: Path, extra: dict) -> tuple[int, int, float, float]:
    """Weights that train and all weights; MB of weights.safetensors and of last.pt after a step, of
    a run whose body came from a file."""
    source, classes = folder / "body.safetensors", some_classes()
    if not source.is_file():
        save_file(build_network(config_of(FULL, extra).model, classes)[0].backbone.state_dict(),
                  source)  # fmt: skip
    config = config_of(case, extra | {"pretrained": str(source)})
    build: Callable[[], Network] = lambda: build_network(config.model, classes)[0]  # noqa: E731
    network = build()
    load_pretrained(network, config.model, "benchmark", "fold0")
    frozen = freeze(network, [], False)
    rest = frozen_rest(network, build, frozen, config.model, "benchmark", "fold0")
    optimizer = build_optimizer(config.train, network, network.bodies())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    state = trained(network.state_dict(), rest)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "weights.safetensors")
    torch.save({"objective": state, "optimizer": optimizer.state_dict()}, folder / "last.pt")
    sizes = [(folder / n).stat().st_size / 1e6 for n in ("weights.safetensors", "last.pt")]
    weights = [sum(p.numel() for p in network.parameters() if p.requires_grad or every)
               for every in (False, True)]  # fmt: skip
    return *weights, *sizes


def in_a_process(name: str, batch: int, extra: dict) -> float:
    """`peak` of a fresh process."""
    command = [sys.executable, __file__, "--peak", name, "--batch", str(batch)]
    command += ["--model", json.dumps(extra)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE",
                        help=f"of {', '.join(CASES)}")  # fmt: skip
    parser.add_argument("--batch", type=int, default=32, help="images per step (default: 32; LIFT "
                        "has 128)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="pairs that are timed (default: 5)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    parser.add_argument("--model", type=json.loads, default={}, metavar="JSON",
                        help="further keys of the section model")  # fmt: skip
    parser.add_argument("--peak", choices=["full", *CASES], help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.peak:
        case = ({"full": FULL} | CASES)[args.peak]
        print(json.dumps(peak(case, args.batch, device, args.model)))
        return
    with tempfile.TemporaryDirectory() as folder:
        disk = partial(on_disk, folder=Path(folder), extra=args.model)
        whole = in_a_process("full", args.batch, args.model)
        rows = [row(FULL, 1.0, whole, whole, disk(FULL))]
        for name in args.cases:
            found = in_a_process(name, args.batch, args.model)
            seconds = ratio(CASES[name], args.batch, args.rounds, device, args.model)
            rows.append(row(CASES[name], seconds, found, whole, disk(CASES[name])))
            print(json.dumps(rows[-1]), flush=True)
    body = f"{provenance()}\n\nA training step of LIFT's recipe on {MODEL['backbone']}, "
    body += f"{CLASSES} classes, {args.batch} images; ratios to full fine-tuning, medians of "
    body += f"{args.rounds} pairs. Files of a run that started from a weights file.\n\n"
    kind = "cuda" if device.type == "cuda" else "cpu"
    title = "Parameter-efficient tuning against full fine-tuning"
    print(write_section(f"tuning {kind}", title, body + markdown(rows, 2), args.out))


def row(case: Case, seconds: float, found: float, whole: float, disk: tuple) -> dict:
    train, every, weights, last = disk
    return {
        "trained": case.title,
        "weights, millions": f"{train / 1e6:.2f} of {every / 1e6:.2f}",
        "training step": seconds,
        "peak memory": found / whole,
        "peak memory, MiB": round(found),
        "weights.safetensors, MB": round(weights, 1),
        "last.pt, MB": round(last, 1),
    }


if __name__ == "__main__":
    cli.run(main)
