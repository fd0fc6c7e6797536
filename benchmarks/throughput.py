"""Stage-1 throughput: the shipped loop against a bare loop and timm's, side by side in one run.

    python benchmarks/throughput.py --config configs/birds_lt_plain.yaml
    python benchmarks/throughput.py --set train.precision=bf16

Five arms take turns, each in a process of its own, so that none inherits another's memory:
  shipped   02's loop on the real images: reading, augmenting, EMA, loss terms, schedule
  bare      the same network, precision, memory format and optimizer on one constant random batch
  compiled  the bare step by torch.compile: what kernels that were made for this network would give
  plain     the same network as a first script would train it: the real images through the same
            loader, float32, default memory format, no EMA, memory settings of the system
  timm      the same network, images, size, batch and precision by the parts of timm's train script:
            its dataset, loader, optimizer and EMA, and a step as there. Its best flags for one
            machine: channels_last, prefetcher, workers that live on; its augmentation is the
            config's crop, mirroring and jitter, without the rest
Images per second are medians over the rounds; the ratios are what counts. No loop over the same
network can be further ahead of timm's than a bare step is. Each precision and other override has a
section of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/throughput.py`

from benchmarks.results import markdown, provenance, write_section
from src import cli
from src.artifacts.dataset import load_dataset
from src.config.read import load_config
from src.networks.base import Progress
from src.prepare.prepare import prepare
from src.runtime import start
from src.training.fold import Fold
from src.training.job import build_trainer
from src.training.loop import Trainer

WARMUP = 4  # steps that are not timed
ARMS = ("shipped", "bare", "compiled", "plain", "timm")


def arm(name: str, config_path: str, overrides: list[str], steps: int) -> float:
    """Images per second of one arm, in this process."""
    if name == "plain":
        overrides = [*overrides, "train.precision=fp32", "train.channels_last=false"]
    if name == "compiled":
        overrides = [*overrides, "train.compile=true"]
    config = load_config(config_path, overrides)
    accelerator = start(config.train.precision, keep_memory=name not in ("plain", "timm"))
    job = Fold(config, load_dataset(config.dataset), 0, Path("unused"), accelerator)
    trainer, loader, _ = build_trainer(job)
    if name == "shipped":
        return shipped(trainer, loader, steps)
    if name == "timm":
        return by_timm(trainer, job, steps)
    return simple(trainer, real(trainer, loader) if name == "plain" else constant(trainer), steps)


def shipped(trainer: Trainer, loader, steps: int) -> float:
    """`Trainer.step` over the real loader; the loop around it does nothing else per step."""
    trainer.objective.train()
    for done, batch in enumerate(chain.from_iterable(repeat(loader))):
        if done == WARMUP:
            began, images = now(), 0
        if done == WARMUP + steps:
            return images / (now() - began)
        trainer.schedule.step_update(done)
        trainer.step(batch, Progress(0, done, 0.0))
        if done >= WARMUP:
            images += len(batch.labels)


def simple(trainer: Trainer, batches: Iterator, steps: int) -> float:
    """Forward, backward, optimizer step, and nothing else, over (images, labels)."""
    train, network = trainer.config, trainer.network.train()
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.SGD
    optimizer = kind(network.parameters(), lr=train.lr)
    for done, (images, labels) in enumerate(batches):
        if done == WARMUP:
            began = now()
        if done == WARMUP + steps:
            return steps * len(labels) / (now() - began)
        with trainer.accelerator.autocast():
            logits = network(images).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def by_timm(trainer: Trainer, job: Fold, steps: int) -> float:
    """timm's train script without its logging and checkpoints."""
    loop = TimmLoop(trainer)
    with tempfile.TemporaryDirectory() as folder:
        loader = timm_loader(trainer, job, Path(folder))
        for done, (images, labels) in enumerate(chain.from_iterable(repeat(loader))):
            if done == WARMUP:
                began = now()
            if done == WARMUP + steps:
                return steps * trainer.config.batch_size / (now() - began)
            loop.step(images, labels, done)


class TimmLoop:
    """The step of timm's train script on a trainer's network, with its optimizer and EMA."""

    def __init__(self, trainer: Trainer):
        self.config, self.network = trainer.config, trainer.network.train()
        train = self.config
        self.optimizer = create_optimizer_v2(
            self.network, opt=train.optimizer, lr=train.lr, weight_decay=train.weight_decay
        )
        self.ema = ModelEmaV3(self.network, decay=train.ema) if train.ema else None

    def step(self, images: torch.Tensor, labels: torch.Tensor, done: int) -> None:
        """done: steps before this one"""
        train, bf16 = self.config, self.config.precision == "bf16"
        if train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = torch.nn.functional.cross_entropy(self.network(images).logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        if train.clip_grad:
            dispatch_clip_grad(self.network.parameters(), train.clip_grad)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.network, step=done)


def timm_loader(trainer: Trainer, job: Fold, folder: Path):
    """Over links to the fold's training images in a folder per class, as timm reads them."""
    device = trainer.accelerator.device
    augment, prep = job.config.train.augment, trainer.prep
    table = job.data.training(job.fold)
    for number, path, label in table[["path", "label"]].itertuples():
        link = folder / f"{label:05d}" / f"{number}{Path(path).suffix}"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(Path(path).absolute())
    jitter = augment.color_jitter
    return create_loader(
        create_dataset("", root=str(folder), is_training=True),
        prep.size,
        trainer.config.batch_size,
        is_training=True,
        train_crop_mode="rrc" if augment.crop == "random_resized" else "rkrc",
        scale=augment.scale,
        hflip=0.5 * augment.hflip,
        color_jitter=(jitter.brightness, jitter.contrast, jitter.saturation) if jitter.on else None,
        color_jitter_prob=jitter.p if jitter.on else None,
        interpolation=prep.interpolation,
        mean=prep.mean,
        std=prep.std,
        num_workers=job.config.data.workers,
        persistent_workers=job.config.data.workers > 0,
        use_multi_epochs_loader=job.config.data.workers > 0,
        pin_memory=device.type == "cuda",
        device=device,
    )


def constant(trainer: Trainer) -> Iterator:
    """One random batch, again and again."""
    device, size = trainer.accelerator.device, trainer.config.batch_size
    images = torch.randn(size, 3, trainer.prep.size, trainer.prep.size, device=device)
    if trainer.config.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    classes = trainer.network.classifier.weight.shape[0]
    return repeat((images, torch.randint(classes, (size,), device=device)))


def real(trainer: Trainer, loader) -> Iterator:
    """The real images, in the default memory format."""
    for batch in chain.from_iterable(repeat(loader)):
        batch = batch.to(trainer.accelerator.device)
        yield trainer.prep.normalise(batch.images).contiguous(), batch.labels


def now() -> float:
    """Seconds, after the device has done all it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/birds_lt_plain.yaml")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=24, help="timed steps per arm and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(arm(args.arm, args.config, args.set, args.steps)))
        return
    prepare(load_config(args.config, args.set))
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    for n in range(args.rounds):
        for name in ARMS:
            command = [sys.executable, __file__, "--arm", name]
            command += ["--config", args.config, "--steps", str(args.steps)]
            command += ["--set", *args.set] if args.set else []
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found[name].append(float(json.loads(out.splitlines()[-1])))
            print(f"round {n + 1}: {name} {found[name][-1]:.1f} images/s", flush=True)
    rows = []
    for name in ARMS:
        ratios = [a / b for a, b in zip(found[name], found["bare"], strict=True)]
        speed, spread = statistics.median(found[name]), statistics.pstdev(found[name])
        rows.append({"loop": name, "images/s": f"{speed:.1f} ± {spread:.1f}",
                     "of bare, median of the rounds": statistics.median(ratios)})  # fmt: skip
    body = f"{provenance()}\n\n{markdown(rows, 2)}\n"
    pairs = [("shipped", "plain"), ("shipped", "timm"), ("bare", "timm"), ("compiled", "timm")]
    for one, other in pairs:
        gain = [a / b for a, b in zip(found[one], found[other], strict=True)]
        body += f"\n{one} over {other}: {statistics.median(gain):.2f}"
    body += f" (medians of {args.rounds} rounds). "
    body += (
        "No loop over this network is further ahead of timm's than a bare step, compiled or not."
    )
    if not torch.cuda.is_available():
        body += "\n\nOn a GPU (ResNet-50, ViT-B/16): not run."
    with_ = f", {' '.join(args.set)}" if args.set else ""
    print(write_section(f"throughput{with_}", f"Stage-1 throughput{with_}", body))


if __name__ == "__main__":
    cli.run(main)
