"""Frozen features of the training side of a fold, computed once per set of weights.

`stage2/features/fold<k>/<what>-<key>.npz`: the key is made of everything the features depend on, so
a file that is there is right, and a killed run goes on with the next one. Those of a body that was
frozen in 02, too, all folds have in common, with 02: `stage1/features/` (src/networks/kept.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from src.artifacts.dataset import Classes, Dataset, fold_of
from src.artifacts.files import sha256
from src.artifacts.ids import check_same_ids
from src.artifacts.predictions import Predictions, load_features, save_features
from src.artifacts.work import digest
from src.config.heads import Trained
from src.config.schema import Config
from src.config.tree import dump_config
from src.data.transforms import EvalTransform, Preprocessing, View
from src.errors import UserError
from src.initialisers import Known, initial_arrays
from src.logits import seen
from src.networks.base import Network
from src.networks.clip_projection import image_projection
from src.networks.forward import run_network
from src.networks.heads import Cosine, LabelEmbedding, Linear
from src.networks.kept import kept_features
from src.rebalance.sgd import Batches, plan, rows_of_epoch

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class FeatureSet:
    """What a head is made from, of the training side of one fold.

    plain: [N, D] of the evaluation view · views: augmented views, each [N, D] · labels: [N] ·
    classes: counts are of these images · classifier: kind and arrays of stage 1's head · columns:
    of the network's features that these are, where it has several heads · to_text: as `Known` has
    it, by the initialiser's `projection`
    """

    plain: np.ndarray
    views: list[np.ndarray]
    labels: np.ndarray
    classes: Classes
    classifier: tuple[str, dict[str, np.ndarray]] | None = None
    columns: np.ndarray | None = None
    to_text: Callable[[str], np.ndarray | None] = lambda asked: None

    def seen_by(self, head: tuple[str, dict[str, np.ndarray]]) -> "FeatureSet":
        """What one of the network's heads acts on, and this head as the classifier."""
        kind, arrays = head[0], dict(head[1])
        columns = arrays.pop("columns", None)
        plain, *views = (seen(f, head[1]) for f in (self.plain, *self.views))
        whole = columns is None
        return replace(
            self, plain=plain, views=views, classifier=(kind, arrays), columns=columns,
            to_text=self.to_text if whole else lambda asked: None,
        )  # fmt: skip

    @property
    def num_classes(self) -> int:
        return self.classes.num

    @property
    def width(self) -> int:
        """D"""
        return self.plain.shape[1]

    def some_views(self, views: int) -> list[np.ndarray]:
        """The first augmented views, or the plain one for 0."""
        return self.views[:views] if views else [self.plain]

    def known(self, views: int, init) -> Known:
        """What an initialiser may look at. init: its section"""
        found = self.some_views(views)
        labels = np.tile(self.labels, len(found))
        to_text = partial(self.to_text, getattr(init, "projection", "fitted"))
        return Known(lambda: np.concatenate(found), labels, self.classes, to_text)

    def batches(self, spec: Trained, seed: int, device: torch.device) -> Batches:
        """Epochs by `spec.sampler`; each draw of an image takes one of its views at random."""
        chosen = self.some_views(spec.views)
        stacked = chosen[0][None] if len(chosen) == 1 else np.stack(chosen)  # no copy of one view
        views = torch.from_numpy(stacked).to(device)  # [V, N, D]
        labels = torch.tensor(self.labels, device=device)
        _, steps, size = plan(spec, len(labels))

        def epoch_batches(epoch: int):
            order = rows_of_epoch(spec, self.labels, self.num_classes, seed, epoch)
            view = np.random.default_rng((seed, epoch, 1)).integers(len(views), size=len(order))
            for start in range(0, steps * size, size):
                rows = torch.from_numpy(order[start : start + size]).to(device)
                which = torch.from_numpy(view[start : start + size]).to(device)
                yield views[which, rows], labels[rows]

        return epoch_batches


def initialise(head: Linear | Cosine | LabelEmbedding, spec, data: FeatureSet) -> None:
    """Let a fresh head start where the section's `init` says."""
    if spec.init.name != "random":
        arrays = initial_arrays(spec.init, data.known(spec.views, spec.init), head.kind)
        head.start_from({name: torch.from_numpy(array) for name, array in arrays.items()})


def stage1_classifier(data: FeatureSet, head: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight [K, D] and bias [K]. Errors: UserError unless it is linear in these features."""
    kind, arrays = data.classifier
    if kind != "linear" or arrays["weight"].shape != (data.num_classes, data.width):
        raise UserError(
            f"stage2 head {head} starts from stage 1's classifier, which must be linear with "
            f"weights [{data.num_classes}, {data.width}]; it is {kind} with "
            f"{list(arrays['weight'].shape)}. Use crt, cosine or ncm."
        )
    return arrays["weight"], arrays["bias"]


@dataclass(frozen=True)
class _Passes:
    """The network in `stage1` over images, loaded when it is first needed. views: how many
    augmented ones there will be"""

    config: Config
    data: Dataset
    stage1: Path
    views: int
    accelerator: Accelerator

    @cached_property
    def network(self) -> tuple[Network, Preprocessing]:
        from src.networks.weights import load_network  # slow to import

        network, prep = load_network(self.stage1 / WEIGHTS, self.data)
        return network.to(self.accelerator.device), prep

    def run(self, table: pd.DataFrame, view: int | None = None) -> Predictions:
        """view: number of an augmented one; None: evaluation's"""
        (network, prep), config = self.network, self.config
        transform = EvalTransform(prep)
        if view is not None:
            from src.data.augment import TrainTransform  # slow to import

            transform = TrainTransform(prep, config.train.augment, config.seed)
        return run_network(
            network,
            table,
            transform,
            prep,
            self.accelerator,
            batch_size=config.train.eval_batch_size,
            workers=config.data.workers,
            label=f"{self.stage1.name} features"
            + ("" if view is None else f", view {view + 1}/{self.views}"),
            view=view or 0,
            logits=False,
        )

    def stored(self, path: Path, images: pd.DataFrame, view: int | None = None) -> np.ndarray:
        """[N, D] by image_id, from disk if there."""
        there = path.is_file()
        self.accelerator.wait_for_everyone()  # all have looked whether it is there
        if not there:
            found = self.run(images, view)
            if self.accelerator.is_main_process:
                save_features(path, found.image_id, found.features)
            self.accelerator.wait_for_everyone()
        ids, features = load_features(path)
        check_same_ids(ids, images["image_id"], str(path), "the fold's training images")
        return features


def feature_set(
    config: Config,
    data: Dataset,
    stage1: Path,
    directory: Path,
    views: int,
    accelerator: Accelerator,
) -> FeatureSet:
    """All features of the images that the network in `stage1` was trained on, from disk if there.

    stage1: a fold's directory with weights.safetensors, or `full` · directory: of the cache
    """
    images, passes = (
        data.training(fold_of(stage1)),
        _Passes(config, data, stage1, views, accelerator),
    )
    weights = sha256(stage1 / WEIGHTS)
    folds = data.directory / "folds.csv"
    if shared := kept_features(stage1 / WEIGHTS, stage1.parent / "features", folds):
        plain = shared.features(images, View(), accelerator, passes.run)
    else:
        plain = passes.stored(directory / f"plain-{digest({'weights': weights})[:12]}.npz", images)
    augmented, augment = [], dump_config(config.train.augment)
    for view in range(views):
        key = {"weights": weights, "augment": augment, "seed": config.seed, "view": view}
        path = directory / f"view{view}-{digest(key)[:12]}.npz"
        augmented.append(passes.stored(path, images, view))
    return FeatureSet(
        plain,
        augmented,
        images["label"].to_numpy(),
        data.classes_of(images),
        to_text=partial(image_projection, config.model, config.text),
    )
