"""Stage-1 throughput: the shipped loop against a bare loop, side by side in one run.

    python benchmarks/throughput.py --config configs/birds_lt_plain.yaml

Three arms take turns, each in a process of its own, so that none inherits another's memory:
  shipped   02's loop on the real images: reading, augmenting, EMA, loss terms, schedule
  bare      the same network, precision, memory format and optimizer on one constant random batch
  plain     the same network as a first script would train it: the real images through the same
            loader, float32, default memory format, no EMA, memory settings of the system
Images per second are medians over the rounds; the ratios are what counts. Needs 01's folds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/throughput.py`

from benchmarks.results import markdown, provenance, write_section
from src.artifacts.dataset import load_dataset
from src.config.read import load_config
from src.networks.base import Progress
from src.runtime import start
from src.training.job import Fold, build_trainer
from src.training.loop import Trainer

WARMUP = 4  # steps that are not timed
ARMS = ("shipped", "bare", "plain")


def arm(name: str, config_path: str, overrides: list[str], steps: int) -> float:
    """Images per second of one arm, in this process."""
    if name == "plain":
        overrides = [*overrides, "train.precision=fp32", "train.channels_last=false"]
    config = load_config(config_path, overrides)
    accelerator = start(config.train.precision, keep_memory=name != "plain")
    job = Fold(config, load_dataset(config.dataset), 0, Path("unused"), accelerator)
    trainer, loader, _ = build_trainer(job)
    if name == "shipped":
        return shipped(trainer, loader, steps)
    return simple(trainer, constant(trainer) if name == "bare" else real(trainer, loader), steps)


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
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    for n in range(args.rounds):
        for name in ARMS:
            command = [sys.executable, __file__, "--arm", name]
            command += ["--config", args.config, "--steps", str(args.steps)]
            command += ["--set", *args.set] if args.set else []
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[name].append(float(json.loads(out.splitlines()[-1])))
            print(f"round {n + 1}: {name} {found[name][-1]:.1f} images/s", flush=True)
    rows = []
    for name in ARMS:
        ratios = [a / b for a, b in zip(found[name], found["bare"], strict=True)]
        speed, spread = statistics.median(found[name]), statistics.pstdev(found[name])
        rows.append({"loop": name, "images/s": f"{speed:.1f} ± {spread:.1f}",
                     "of bare, median of the rounds": statistics.median(ratios)})  # fmt: skip
    gain = [a / b for a, b in zip(found["shipped"], found["plain"], strict=True)]
    body = f"{provenance()}\n\n{markdown(rows, 2)}\n\nshipped over plain: "
    body += f"{statistics.median(gain):.2f} (median of {args.rounds} rounds)"
    print(write_section("throughput", "Stage-1 throughput", body))


if __name__ == "__main__":
    main()
