"""The training loop: it sums the terms of `Network.loss`, and methods are added elsewhere."""

import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from src import cli
from src.config.training import Train
from src.data.dataset import Batch, Targets
from src.data.transforms import Preprocessing
from src.errors import UserError
from src.losses.base import Criterion
from src.losses.distillation import Distillation
from src.networks.base import Network, Progress
from src.networks.freeze import Rest, thaw, training_mode
from src.networks.transfer import WarmStart
from src.progress import each
from src.training.mixing import Mixer, hidden_mixing
from src.training.taught import FixedViews, SameViews


class Objective(nn.Module):
    """Everything with weights that is trained, behind one `forward`, as several processes need it.

    Returns the named terms of the loss: the network's own and those of the auxiliaries.
    """

    def __init__(
        self,
        network: Network,
        criterion: Criterion,
        auxiliaries: nn.ModuleDict,
        distillation: Distillation | None = None,
    ):
        super().__init__()
        self.network, self.criterion, self.auxiliaries = network, criterion, auxiliaries
        self.distillation = distillation

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        self.criterion.set_progress(progress)
        with ExitStack() as stack:
            stack.enter_context(hidden_mixing(self.network, batch))
            for auxiliary in self.auxiliaries.values():
                stack.enter_context(auxiliary.beside(batch))
            terms, output = self.network.loss(batch, self.criterion, progress)
        if self.distillation is not None:
            terms = self.distillation.combined(terms, output.logits, batch)
        for name, auxiliary in self.auxiliaries.items():
            terms[name] = auxiliary(output, batch, progress)
        return terms


@dataclass
class Trainer:
    """What one fold's training holds on to.

    objective and optimizer come from `accelerator.prepare`; network is the bare module inside.
    micro_batches: forward passes per optimizer step and process. rest: of the network, what
    files leave out. thaws: parameters of the network that train from an epoch on.
    began: where its weights are from. targets: of every row of the training table, where labels
    do not say it all. teachers: who says more of images. name: of the fold, for its progress.
    """

    config: Train
    accelerator: Accelerator
    network: Network
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Scheduler
    prep: Preprocessing
    mixer: Mixer
    seed: int
    steps_per_epoch: int
    micro_batches: int
    ema: ModelEmaV3 | None = None
    rest: Rest | None = None
    thaws: dict[str, int] = field(default_factory=dict)
    began: WarmStart = WarmStart("random weights")
    targets: Targets | None = None
    teachers: FixedViews | SameViews | None = None
    name: str = "training"

    @property
    def evaluated(self) -> Network:
        """The network whose weights are kept: the moving average where there is one."""
        return self.network if self.ema is None else self.ema.module

    def train_epoch(self, loader, epoch: int) -> dict[str, float]:
        """One epoch. Returns the means of the loss terms, lr, seconds and images per second.

        Errors: UserError when the loss is no longer finite, or memory runs out.
        """
        thaw(self.network, self.thaws, epoch)
        training_mode(self.objective, self.network, self.config.freeze_batchnorm)
        sums: dict[str, torch.Tensor] = {}
        images, began = 0, time.perf_counter()
        label = f"{self.name} epoch {epoch + 1}/{self.config.epochs}"
        for i, batch in enumerate(each(loader, label, "steps", self.steps_per_epoch)):
            step = epoch * self.steps_per_epoch + i
            fraction = step / (self.config.epochs * self.steps_per_epoch)
            self.schedule.step_update(step)
            images += len(batch.labels) * self.accelerator.num_processes
            progress = Progress(epoch, step, fraction, self.config.epochs)
            for name, value in self.step(batch, progress).items():
                sums[name] = sums.get(name, 0) + value
        means = {name: float(value) / self.steps_per_epoch for name, value in sums.items()}
        seconds = time.perf_counter() - began
        total = sum(means.values())
        if not np.isfinite(total):
            raise UserError(
                f"the loss became {total} in epoch {epoch + 1}. Lower train.lr, set "
                "train.clip_grad=1.0, or use train.precision=fp32."
            )
        terms = {f"loss_{name}": value for name, value in means.items()}
        rate = {"seconds": seconds, "images_per_second": images / seconds}
        return {"lr": self._lr(), "loss": total} | terms | rate

    def step(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """One optimizer step; returns the loss terms. Out of memory is handled here.

        Errors: UserError when `train.compile` could not compile the network.
        """
        try:
            terms = self._backward(batch, progress)
        except RuntimeError as error:
            if self.config.compile:
                _check_compiled(error)
            if not _out_of_memory(error):
                raise
            terms = None  # leave the handler first: the traceback keeps the activations alive
        if terms is None:
            self._shrink(batch, progress)
            terms = self._backward(batch, progress)
        if self.config.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.network, step=progress.step)
        return terms

    def _backward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        parts = batch.split(self.micro_batches)
        sums: dict[str, torch.Tensor] = {}
        for n, part in enumerate(parts):
            part = self._prepare(part, progress, n)
            last = n == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.objective):
                terms = self.objective(part, progress)
                self.accelerator.backward(sum(terms.values()) / len(parts))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(parts)
        return sums

    def _prepare(self, batch: Batch, progress: Progress, part: int) -> Batch:
        """To the device, normalised, in the right memory format, mixed if the config says so."""
        batch = batch.to(self.accelerator.device)
        if self.targets is not None:
            batch = batch.with_targets(self.targets)
        if self.teachers is not None:
            batch = self.teachers.before_mixing(batch)
        for stream in (batch,) if batch.other is None else (batch, batch.other):
            if stream.images.ndim == 3:  # tokens (src/training/prefix.py)
                continue
            stream.images = self.prep.normalise(stream.images)
            if self.config.channels_last:
                stream.images = stream.images.contiguous(memory_format=torch.channels_last)
        if progress.epoch < self.config.epochs - self.config.mixing.off_epochs:
            rank = self.accelerator.process_index
            rng = np.random.default_rng((self.seed, progress.step, part, rank))
            batch = self.mixer(batch, rng)
        if self.teachers is not None:
            batch = self.teachers.after_mixing(batch, self.prep)
        return batch

    def _shrink(self, batch: Batch, progress: Progress) -> None:
        """Halve the micro-batch until it fits, if asked; otherwise say which size fits."""
        alone = self.accelerator.num_processes == 1
        if alone and self.config.on_oom == "accumulate" and self._halve(batch, progress):
            size = -(-len(batch.labels) // self.micro_batches)
            cli.say(f"out of memory: going on with micro-batches of {size} and accumulation")
            return
        fits = "no smaller batch was tried with several processes; halve train.micro_batch"
        if alone:
            found = self._halve(batch, progress)
            size = -(-len(batch.labels) // self.micro_batches)
            fits = f"micro-batches of {size} fit" if found else "not even one image fits"
        raise UserError(
            f"out of memory with {len(batch.labels)} images per forward pass; {fits}. Set "
            "train.micro_batch to that (the optimizer still sees train.batch_size images), or "
            "train.on_oom=accumulate to do it automatically, or lower model.image_size."
        )

    def _halve(self, batch: Batch, progress: Progress) -> bool:
        """Double `micro_batches` until one forward and backward fits; gradients are dropped."""
        while self.micro_batches < len(batch.labels):
            self.micro_batches *= 2
            try:
                part = self._prepare(batch.split(self.micro_batches)[0], progress, 0)
                sum(self.objective(part, progress).values()).backward()
                fits = True
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                fits = False
            self.optimizer.zero_grad()
            if self.accelerator.device.type == "cuda":
                torch.cuda.empty_cache()
            if fits:
                return True
        return False

    def _lr(self) -> float:
        """The scheduled lr, before any group's own factor."""
        group = self.optimizer.param_groups[-1]
        return group["lr"] / group.get("lr_scale", 1.0)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _check_compiled(error: RuntimeError) -> None:
    """Errors: UserError when `error` comes from torch.compile, whose own is a page long."""
    from torch._dynamo.exc import TorchDynamoException  # loaded already, by compiling; else seconds

    if isinstance(error, TorchDynamoException):
        reason = str(error).splitlines()[0]
        raise UserError(
            f"train.compile: torch.compile gave up: {reason}. It needs a C++ compiler (g++; on a "
            "GPU Triton, too); set train.compile=false to train without"
        ) from error
