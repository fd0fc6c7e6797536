"""What the teachers of `train.distill` say of the images that a fold trains on.

    v_i = 1/M Σ_m 1/|m| Σ_{n ∈ m} z_n(x_i),   m: experiments, n: the networks of one that teach

views: fixed  x_i is the image in its evaluation view; [N, K] before training, kept on disk
views: same   x_i is what the network gets, augmented and mixed, in the teacher's size and with its
              mean and deviation: consistent teaching (Beyer et al., CVPR 2022)
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from src.artifacts.dataset import Dataset
from src.artifacts.files import read_arrays, sha256, write_arrays
from src.artifacts.work import digest
from src.config.schema import Config
from src.data.dataset import Batch
from src.data.transforms import Preprocessing
from src.metrics import chunks
from src.networks.base import Network
from src.networks.weights import load_network
from src.training.earlier import flatters
from src.training.teachers import WEIGHTS, Teachers

LOWEST = -6e4  # of a float16, nearly


class FixedViews:
    """logits: [N, K] of every row of the training table"""

    def __init__(self, logits: np.ndarray, device: torch.device):
        self.logits = torch.from_numpy(logits).to(device)

    def before_mixing(self, batch: Batch) -> Batch:
        return batch.with_teacher(self.logits)

    def after_mixing(self, batch: Batch, prep: Preprocessing) -> Batch:
        return batch


class SameViews:
    """networks: of each experiment, with what they expect of images"""

    def __init__(
        self, networks: list[list[tuple[Network, Preprocessing]]], accelerator: Accelerator
    ):
        self.networks, self.accelerator = networks, accelerator
        for network, _ in (one for group in networks for one in group):
            network.to(accelerator.device).eval().requires_grad_(False)

    def before_mixing(self, batch: Batch) -> Batch:
        return batch

    @torch.no_grad()
    def after_mixing(self, batch: Batch, prep: Preprocessing) -> Batch:
        """prep: by which `batch.images` are normalised"""
        total = 0
        for group in self.networks:
            for network, theirs in group:
                with self.accelerator.autocast():
                    logits = network(as_seen(batch.images, prep, theirs)).logits  # [N, K]
                total = total + logits.float() / (len(group) * len(self.networks))
        return replace(batch, teacher=total)


def as_seen(images: torch.Tensor, prep: Preprocessing, theirs: Preprocessing) -> torch.Tensor:
    """Images [N, 3, H, W], normalised by `prep`, as a network with `theirs` expects them: mean and
    deviation are linear, so mixed images stay that mixture."""
    own, other = ((p.mean, p.std, images.device) for p in (prep, theirs))
    (mean, std), (to_mean, to_std) = (_columns(*p) for p in (own, other))
    if (prep.mean, prep.std) != (theirs.mean, theirs.std):
        images = (images * std + mean - to_mean) / to_std
    if images.shape[2:] != (theirs.size, theirs.size):
        size = (theirs.size, theirs.size)
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return images


def _columns(mean: tuple, std: tuple, device: torch.device) -> list[torch.Tensor]:
    return [torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std)]


@dataclass(frozen=True)
class Taught:
    """views: what is asked in each step · facts: for the manifest"""

    views: FixedViews | SameViews
    facts: dict


def taught(
    teachers: Teachers,
    table: pd.DataFrame,
    data: Dataset,
    config: Config,
    fold: int | None,
    cache: Path,
    accelerator: Accelerator,
) -> Taught:
    """What `teachers` say of the rows of `table`, or the teachers themselves.

    table: what the fold trains on, [N] · cache: directory for it
    """
    if config.train.distill.views == "fixed":
        logits = said(teachers, table, data, config, cache, accelerator)
        views = FixedViews(logits, accelerator.device)
    else:
        loaded = [[load_network(one.stage1 / WEIGHTS, data) for one in group] for group in teachers]
        views = SameViews(loaded, accelerator)
    return Taught(views, facts_of(teachers, config, fold))


def said(
    teachers: Teachers,
    table: pd.DataFrame,
    data: Dataset,
    config: Config,
    cache: Path,
    accelerator: Accelerator,
) -> np.ndarray:
    """[N, K] float16: the mean of the teachers' logits, of each the mean over its networks, less
    the largest of each row. Once made, it is read from `cache`, a directory.

    table: rows of folds.csv, and of test.csv with pseudo-labels, [N]
    """
    everyone = [one for networks in teachers for one in networks]
    key = {"images": digest({"ids": table["image_id"].tolist()})}
    key |= {name: sha256(path) for one in everyone for name, path in one.inputs().items()}
    path = cache / f"{everyone[0].stage1.name}-{digest(key)[:12]}.npz"
    there = path.is_file()
    accelerator.wait_for_everyone()  # all have looked whether it is there
    if not there:
        total = 0
        for networks in teachers:
            for one in networks:
                logits = one.logits(table, data, config, accelerator)
                total += logits / (len(networks) * len(teachers))
        if accelerator.is_main_process:
            write_arrays(
                path, image_id=np.sort(table["image_id"].to_numpy(str)), logits=half(total)
            )
        accelerator.wait_for_everyone()
    found = read_arrays(path)
    return found["logits"][np.searchsorted(found["image_id"], table["image_id"].to_numpy(str))]


def half(logits: np.ndarray) -> np.ndarray:
    """[N, K] as float16, whose steps are finest where the likely classes now are, at 0."""
    found = np.empty(logits.shape, np.float16)
    for rows in chunks(*logits.shape):
        top = logits[rows].max(1, keepdims=True)
        found[rows] = np.maximum(logits[rows] - top, LOWEST)
    return found


def facts_of(teachers: Teachers, config: Config, fold: int | None) -> dict:
    """For the manifest, whose inputs have the hashes. optimistic: what flatters a teacher's scores
    flatters those of whom it taught."""
    first = [networks[0] for networks in teachers]
    reasons = [] if fold is None else flatters([(one.home, one.head) for one in first])
    return {
        "teachers": [f"{one.home.name}/{one.head}" for one in first],
        "networks": sorted({one.stage1.name for networks in teachers for one in networks}),
        "views": config.train.distill.views,
        "optimistic": reasons,
    }
