"""What the config of a network to train says about how: network, data, optimizer, seeded."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from accelerate import DistributedDataParallelKwargs
from timm.utils import ModelEmaV3

from src import cli
from src.auxiliaries import build_auxiliaries
from src.data.cache import keep_images
from src.data.dataset import Epochs
from src.data.loader import training_loader
from src.data.resizing import training_transform
from src.data.samplers import epoch_order
from src.errors import some
from src.language.names import captions
from src.losses import build_criterion
from src.losses.distillation import Distillation
from src.networks.base import Network
from src.networks.build import blank_network, build_network, check_image_size, check_resizing
from src.networks.freeze import Rest, freeze, thawing
from src.networks.origins import source_of
from src.networks.plain import Plain
from src.networks.weights import frozen_rest, load_pretrained
from src.runtime import seed_all
from src.training.fold import Fold
from src.training.initial import initialise_heads
from src.training.loop import Objective, Trainer
from src.training.mixing import Mixer
from src.training.optim import build_optimizer, build_schedule
from src.training.prefix import keep_tokens
from src.training.taught import taught
from src.training.teachers import Teachers


def listening(job: Fold, teachers: Teachers) -> Fold:
    """The job with what teachers say of the images that it trains on, pseudo-labelled ones, too."""
    table = job.data.training(job.fold)
    if job.pseudo is not None:
        test = job.data.test.set_index("image_id").loc[job.pseudo.table["image_id"]].reset_index()
        table = pd.concat([table, test], ignore_index=True)
    table = table.drop(columns=["label", "fold"])
    cache = job.directory.parents[1] / "teachers"
    said = taught(teachers, table, job.data, job.config, job.fold, cache, job.accelerator)
    return replace(job, taught=said)


def build_trainer(job: Fold, *, fresh: bool = True) -> tuple[Trainer, object, Epochs]:
    """Network, data and optimizer of one fold, seeded. fresh: False where a checkpoint will say
    what the weights are."""
    config, train, accelerator = job.config, job.config.train, job.accelerator
    images = rows = job.data.training(job.fold)
    known = classes = job.data.classes_of(images)
    targets = None
    if job.pseudo is not None:
        rows, targets = job.pseudo.added(images), job.pseudo.targets(images)
        classes = replace(known, counts=job.pseudo.counted(known))
    if train.auxiliaries and (blank := blank_network(config.model, classes)) is not None:
        build_auxiliaries(train.auxiliaries, blank, classes)  # refusals, before weights are fetched
    seed = seed_all(config.seed, job.name)
    described = config.model.network.captions and captions(config, job.data.classes)
    hub = config.model.pretrained is True
    build = partial(build_network, config.model, classes, pretrained=hub)
    network, prep = build()
    check_image_size(network, config.model)
    check_resizing(network, config.model, classes, train.resizing)
    origin = load_pretrained(network, config.model, config.dataset, job.name)
    more = f" and {len(rows) - len(images)} pseudo-labelled" if job.pseudo else ""
    from_where = "" if job.again and origin.classes else f", {origin}"
    cli.say(f"{job.directory}: {len(images)} images{more}{from_where}")
    if described:
        network.begin(source_of(config.model, config.dataset, job.name), described)
    rest = hold(job, network, lambda: build()[0])
    thaws = thawing(network, train.thaws if train.epochs else [])
    network.to(accelerator.device)
    if train.channels_last:
        network.to(memory_format=torch.channels_last)
    if fresh:
        kept = job.kept(rest, prep)
        initialise_heads(network, prep, images, known, config, accelerator, kept)
    ema = moving_average(network, train.ema) if train.ema else None
    if train.compile:
        network.compile()
    auxiliaries = build_auxiliaries(train.auxiliaries, network, classes)
    distillation = Distillation(train.distill, known) if job.taught else None
    objective = Objective(network, build_criterion(config, classes), auxiliaries, distillation)
    epochs = build_epochs(job, rows["label"].to_numpy())
    optimizer = build_optimizer(train, objective, network.bodies())
    schedule = build_schedule(train, optimizer, len(epochs))
    mixer = Mixer(train.mixing, classes.counts, len(network.mix_points()))
    if thaws:  # what gets a gradient changes after several processes have agreed on it
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    objective, optimizer = accelerator.prepare(objective.to(accelerator.device), optimizer)
    share = train.batch_size // accelerator.num_processes
    trainer = Trainer(
        train, accelerator, network, objective, optimizer, schedule, prep, mixer, seed,
        steps_per_epoch=len(epochs), micro_batches=share // (train.micro_batch or share), ema=ema,
        rest=rest, thaws=thaws, began=origin,
        targets=targets and targets.to(accelerator.device),
        teachers=job.taught and job.taught.views, name=job.name,
    )  # fmt: skip
    transform = training_transform(prep, train, config.seed)
    if config.data.cache != "none" and job.fold is not None:
        keep_images(job.data.held_out(job.fold)["path"], config.data.workers)
    loader = keep_tokens(config, network, prep, rows, epochs, accelerator, str(job.directory))
    if loader is None:
        loader = training_loader(config.data, rows, transform, epochs, accelerator.device)
    return trainer, loader, epochs


def moving_average(network: Network, decay: float) -> ModelEmaV3:
    """A copy of the network that shares with it what never trains, of which there may be much more
    than of the rest."""
    ema = ModelEmaV3(network, decay=decay, use_warmup=True)
    copies = dict(ema.module.named_modules())
    for name, module in network.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                setattr(copies[name], key, parameter)
    return ema


def hold(job: Fold, network: Network, build: Callable[[], Network]) -> Rest | None:
    """Freeze what the config says; returns what of it the files will leave out, after no epoch
    all but the heads. build: another network as this one was at first"""
    config, train = job.config, job.config.train
    frozen, still = set(), _all_but_heads(network)
    if train.epochs:
        frozen = still = freeze(network, train.frozen, train.freeze_batchnorm)
    rest = frozen_rest(network, build, still, config.model, config.dataset, job.name)
    rest = rest and replace(rest, body=_is_body(network, rest))
    if frozen:
        own = sorted(frozen - rest.names) if rest else sorted(frozen)
        note = f", {len(own)} of them from nowhere else and saved: {some(own)}" if own else ""
        cli.say(f"{job.directory}: {len(frozen)} tensors frozen{note}")
    return rest


def _is_body(network: Network, rest: Rest) -> bool:
    saved = network.state_dict().keys() - rest.names
    saved = {name for name in saved if not name.startswith(network.training_only)}
    return type(network).forward is Plain.forward and not saved & _all_but_heads(network)


def _all_but_heads(network: Network) -> set[str]:
    """Names of tensors, without those of the heads, which `model.head_init` fills."""

    def tensors(module):
        return module.state_dict(keep_vars=True).items()  # the tensors themselves, not views

    heads = {id(v) for module, _ in network.classifiers().values() for _, v in tensors(module)}
    return {name for name, v in tensors(network) if id(v) not in heads}


def build_epochs(job: Fold, labels: np.ndarray) -> Epochs:
    """Batches of rows of `labels` [N] by `train.sampler`, and by `train.second_sampler` if any.

    `same` draws the rows of the first stream: row i of both halves of a batch is one image, and its
    augmentation differs because it depends on the position in the epoch.
    """
    train = job.config.train

    def rows(epoch: int, sampler: str, stream: int) -> np.ndarray:
        if train.deferred.sampling and epoch / train.epochs >= train.deferred.start:
            sampler = "class_balanced"
        return epoch_order(
            sampler, labels, job.data.num_classes, job.config.seed, epoch, train.epochs,
            power=train.sampler_power, stream=stream,
        )  # fmt: skip

    first, second = partial(rows, sampler=train.sampler, stream=0), None
    if train.second_sampler == "same":
        second = first
    elif train.second_sampler is not None:
        second = partial(rows, sampler=train.second_sampler, stream=1)
    rank, world = job.accelerator.process_index, job.accelerator.num_processes
    return Epochs(first, train.batch_size, rank, world, second)
