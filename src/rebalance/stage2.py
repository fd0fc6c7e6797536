"""Stage 2: stage 1's weights → re-balanced heads per fold, with out-of-fold logits."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import Accelerator

from src import cli
from src.artifacts.dataset import FULL, Dataset, finished_networks, fold_of, load_dataset
from src.artifacts.heads import head_file, load_head, save_head
from src.artifacts.lock import locked
from src.artifacts.predictions import Predictions, load_predictions
from src.artifacts.trained import trained_config
from src.artifacts.work import RUNS, Work
from src.config.names import at
from src.config.schema import Config
from src.config.text import needs_text
from src.data.transforms import EvalTransform
from src.errors import UserError
from src.language.text import with_text
from src.logits import head_distance, head_logits
from src.metrics import summary
from src.networks.batchnorm import FILE as STATISTICS
from src.networks.batchnorm import save_statistics
from src.networks.forward import run_network
from src.progress import progress
from src.rebalance import HEADS
from src.rebalance.features import FeatureSet, feature_set
from src.rebalance.live import LiveFeatures
from src.runtime import seed_all, start
from src.search.winner import describe, describe_head, with_head_winners, with_winner


@dataclass(frozen=True)
class Experiment:
    """searched: by head, the values that its config has from a search, by key"""

    config: Config
    data: Dataset
    home: Path
    accelerator: Accelerator
    searched: dict[str, dict] = field(default_factory=dict)


@dataclass(frozen=True)
class Fold:
    """What heads are fitted on and scored on: a network of stage 1, the features of its training
    images by branch, and its held-out images with theirs, of which `full` has none."""

    stage1: Path
    features: dict[str, FeatureSet]
    held_out: Predictions | None


def load_fold(work: Experiment, stage1: Path, views: int) -> Fold:
    """Both from disk, where 02 left the held-out ones; the others are computed if need be."""
    cache = work.home / "stage2" / "features" / stage1.name
    whole = feature_set(work.config, work.data, stage1, cache, views, work.accelerator)
    heads = {branch: load_head(stage1 / head_file(branch)) for branch in branches(work.config)}
    features = {branch: whole.seen_by(head) for branch, head in heads.items()}
    if stage1.name == FULL:
        return Fold(stage1, features, None)
    held_out = load_predictions(stage1 / "oof.npz", work.data.num_classes)
    return Fold(stage1, features, held_out)


def stage2(config: Config, experiment: str, overwrite: bool, folds: list[str] = ()) -> pd.DataFrame:
    """Fit every head of the config on every network that 02 finished; one row of metrics each.

    folds: numbers and `full`; none: all of them. Errors: UserError when 02 has finished nothing or
    not one of `folds`, or was run on other folds.
    """
    data = load_dataset(config.dataset).choose(folds)
    home = RUNS / config.dataset / experiment
    asked = config
    config, values = with_winner(asked, home, data)
    config = trained_config(config, home)  # views are augmented as in stage 1
    if any(map(_augmented, config.stage2)):
        from src.data.resizing import check_augment  # slow to import: albumentations

        check_augment(config)
    config, searched = with_head_winners(config, home, data)
    accelerator = start(config.train.precision)
    data = with_text(data, config, config.stage2, accelerator)
    work = Experiment(config, data, home, accelerator, searched)
    notes = [describe(asked, values, home)]
    notes += [describe_head(asked, name, found, home) for name, found in searched.items()]
    for note in filter(None, notes):
        cli.say(note)
    rows = []
    views = max((spec.views for spec in config.stage2), default=0)
    networks, heads = finished_networks(home, data), list(product(config.stage2, branches(config)))
    with progress(len(networks) * len(heads), "heads", "heads") as bar:
        for stage1 in networks:
            fold: Fold | None = None
            for spec, branch in heads:
                name = at(spec.title, branch)
                step = head_step(work, spec, name, stage1, overwrite)
                if step.finished():
                    metrics = step.manifest()["metrics"]
                else:
                    if fold is None and not _live(spec):
                        main = work.accelerator.is_main_process
                        with locked(home / "stage2" / "features", wait=False, main=main):
                            fold = load_fold(work, stage1, views)
                    metrics = fit_head(work, spec, branch, stage1, fold, step)
                rows.append({"classifier": name, "fold": stage1.name} | metrics)
                bar.update()
    return pd.DataFrame(rows)


def branches(config: Config) -> tuple[str, ...]:
    """Names of the network's heads; one head has none."""
    return config.model.network.branches or ("",)


def _live(spec) -> bool:
    """Whether a head needs the backbone itself and not its cached features."""
    return getattr(spec, "bn", "frozen") == "train"


def _augmented(spec) -> bool:
    """Whether a head sees training images as stage 1 did."""
    return bool(spec.views) or _live(spec)


def head_step(work: Experiment, spec, name: str, stage1: Path, overwrite: bool) -> Work:
    inputs = {
        "folds.csv": work.data.directory / "folds.csv",
        "weights.safetensors": stage1 / "weights.safetensors",
    }
    inputs |= work.data.text_input() if needs_text(spec) else {}
    settings = head_settings(work.config, spec)
    directory = work.home / "stage2" / name / stage1.name
    main = work.accelerator.is_main_process
    with work.accelerator.main_process_first():
        return Work(directory, settings, inputs, overwrite=overwrite, main=main)


def head_settings(config: Config, spec) -> dict:
    """What decides how a head comes out."""
    settings = {"head": spec, "seed": config.seed}
    if _augmented(spec):
        settings["augment"] = config.train.augment
    return settings


def fit_head(
    work: Experiment, spec, branch: str, stage1: Path, fold: Fold | None, step: Work
) -> dict[str, float]:
    """Fit one head on one fold, on the main process, and write its artifacts.

    branch: of the network, whose features it acts on · fold: None for a head that runs the backbone
    """
    metrics: dict[str, float] = {}
    live = live_features(work, stage1, branch) if _live(spec) else None
    if not work.accelerator.is_main_process:
        return metrics
    kind, arrays = fit(work, spec, branch, stage1, live or fold.features[branch])
    save_head(step.directory / "head.safetensors", kind, arrays)
    outputs = ["head.safetensors"]
    if live is not None:
        save_statistics(step.directory / STATISTICS, live.network)
        outputs.append(STATISTICS)
    if stage1.name != FULL:
        oof = fold.held_out if live is None else held_out_features(work, live, stage1)
        logits = head_logits(oof.features, arrays, kind)
        distance = head_distance(oof.features, arrays, kind)
        oof.with_logits(logits, distance).save(step.directory / "oof.npz")
        outputs.append("oof.npz")
        bins = work.data.classes["bin"].to_numpy()
        metrics = summary(logits, oof.label, bins, work.config.metric)
    step.finish(
        outputs,
        metrics,
        seed=work.config.seed,
        device=str(work.accelerator.device),
        searched=work.searched.get(spec.title, {}),
    )
    return metrics


def fit(
    work: Experiment, spec, branch: str, stage1: Path, features: FeatureSet | LiveFeatures
) -> tuple[str, dict[str, np.ndarray]]:
    """Kind and arrays of one head on one network's features, a function of the config's seed."""
    seed = seed_all(work.config.seed, stage1.name, at(spec.title, branch))
    kind, arrays = HEADS[spec.head](spec, features, seed, work.accelerator.device)
    return kind, arrays if features.columns is None else arrays | {"columns": features.columns}


def live_features(work: Experiment, stage1: Path, branch: str) -> LiveFeatures:
    """The network of a fold and its training images, for heads with `bn: train`."""
    if work.accelerator.num_processes > 1:
        raise UserError("stage2 bn: train runs in one process: python 03_train_stage2.py …")
    from src.networks.weights import load_network  # slow to import

    network, prep = load_network(stage1 / "weights.safetensors", work.data)
    network.to(work.accelerator.device)
    images = work.data.training(fold_of(stage1))
    classes = work.data.classes_of(images)
    return LiveFeatures(network, prep, images, classes, work.config, work.accelerator, branch)


def held_out_features(work: Experiment, live: LiveFeatures, stage1: Path) -> Predictions:
    """What the network with its new statistics makes of the fold's held-out images."""
    return run_network(
        live.network,
        work.data.held_out(fold_of(stage1)),
        EvalTransform(live.prep),
        live.prep,
        work.accelerator,
        batch_size=work.config.train.eval_batch_size,
        workers=work.config.data.workers,
        logits=False,  # a head of this stage makes them
    )
