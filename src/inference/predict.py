"""Test images → test logits of every head, averaged over views and networks.

The backbone runs once per network and view. Its features and logits are kept per network as means
over the views (`predict/cache/`), so a new head or a new calibration costs seconds; views done
before a kill are not done again. For linear heads the mean of the features gives exactly the mean
of the logits. With predict.keep_views each view's own stay, in `predict/views/`; with
predict.keep_networks each network's final ones, in `predict/networks/`.
"""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from src.artifacts.dataset import Dataset, finished_networks, fold_of, load_dataset
from src.artifacts.files import sha256
from src.artifacts.heads import head_path, load_head
from src.artifacts.marks import marks
from src.artifacts.oof import script_of
from src.artifacts.predictions import Predictions, load_predictions, network_file
from src.artifacts.trained import trained_config
from src.artifacts.work import MANIFEST, RUNS, Work, digest, require
from src.config.names import STAGE1
from src.config.schema import Config
from src.data.transforms import EvalTransform
from src.errors import UserError
from src.fusion import apply_recipe, check_recipe
from src.fusion.step import Head
from src.fusion.store import ARRAYS, RECIPE, load_recipe
from src.inference.networks import keep_network
from src.inference.views import keep_views, tta_views, view_files
from src.logits import head_distance, head_logits
from src.networks.batchnorm import FILE as STATISTICS
from src.networks.batchnorm import load_statistics
from src.networks.forward import run_network
from src.networks.weights import load_network
from src.runtime import start


def predict(config: Config, experiment: str, overwrite: bool) -> dict[str, Path]:
    """Write predict/<head>.npz for stage1, every stage-2 head and posthoc; returns their paths.

    Errors: UserError when an earlier stage is missing or was run on other folds, or there are no
    test images.
    """
    data = load_dataset(config.dataset)
    if data.test.empty:
        raise UserError(f"{data.directory / 'test.csv'} lists no images; set data.test, run 01")
    home = RUNS / config.dataset / experiment
    config = trained_config(config, home)
    accelerator = start(config.train.precision)
    names = config.head_names
    networks = [path.name for path in finished_networks(home, data)]
    heads = {network: _head_files(home, config, network) for network in networks}
    posthoc = require(home / "posthoc" / RECIPE, "04_posthoc_calibrate.py").parent
    inputs = {name: data.directory / name for name in ("folds.csv", "test.csv")}
    inputs |= {n: posthoc / n for n in (RECIPE, ARRAYS) if (posthoc / n).is_file()}
    for network, files in heads.items():
        inputs[f"{network}/weights"] = home / "stage1" / network / "weights.safetensors"
        inputs |= {f"{network}/{name}": path for name, path in files.items()}
        inputs |= {f"{network}/{n}/{STATISTICS}": p for n, p in _statistics(files).items()}
    main = accelerator.is_main_process
    with accelerator.main_process_first():
        work = Work(home / "predict", config.predict, inputs, overwrite=overwrite, main=main)
        views = _kept_views(config, heads)
        kept = [network_file(n, name) for n in networks for name in config.predict.keep_networks]
        finished = work.finished(wanted=[*views, *kept])
    paths = {name: work.directory / f"{name}.npz" for name in (*names, "posthoc")}
    if finished:
        return paths
    recipe, counts = load_recipe(posthoc), data.counts(data.images)
    check_recipe(recipe, names, posthoc / RECIPE)
    sums: dict[str, np.ndarray] = {}
    distances: dict[str, np.ndarray] = {}
    for network in networks:
        stage1 = home / "stage1" / network
        found = network_predictions(config, data, stage1, work.directory, accelerator)
        own = {
            name: network_predictions(config, data, stage1, work.directory, accelerator, path)
            for name, path in _statistics(heads[network]).items()
        }
        loaded = {name: load_head(path) for name, path in heads[network].items()}
        logits = all_logits(found, own, loaded, recipe, counts)
        _add(sums, logits, len(networks))
        _add(distances, all_distances(found, own, loaded), len(networks))
        if main:
            asked, whose = config.predict.keep_networks, (network, fold_of(stage1))
            keep_network(work.directory, whose, asked, found, logits, loaded, recipe, counts)
    if main:
        for name, path in paths.items():
            found.with_logits(sums[name], distances.get(name)).save(path)
        work.finish(
            [*(path.name for path in paths.values()), *views, *kept],
            networks=networks,
            views=[asdict(view) for view in tta_views(config.predict.tta)],
            **marks(home),
        )
    accelerator.wait_for_everyone()
    return paths


def all_logits(
    found: Predictions,
    own: dict[str, Predictions],
    loaded: dict[str, Head],
    recipe: dict,
    counts: np.ndarray,
) -> dict[str, np.ndarray]:
    """Logits [N, K] of stage1, every head and posthoc, of one network.

    own: predictions of heads that changed the backbone's batch norm · loaded: heads by name ·
    counts: [K] images of each class, of all folds
    """
    logits = {STAGE1: found.logits}
    for name, (kind, arrays) in loaded.items():
        if name != STAGE1:
            logits[name] = head_logits(own.get(name, found).features, arrays, kind)
    f, columns = found.features, found.columns
    return logits | {"posthoc": apply_recipe(recipe, f, loaded, logits, counts, columns)}


def all_distances(
    found: Predictions, own: dict[str, Predictions], loaded: dict[str, Head]
) -> dict[str, np.ndarray]:
    """Distance [N] of each head that compares features with something; arguments as above."""
    distances = {
        name: head_distance(own.get(name, found).features, arrays, kind)
        for name, (kind, arrays) in loaded.items()
    }
    return {name: distance for name, distance in distances.items() if distance is not None}


def _add(sums: dict[str, np.ndarray], parts: dict[str, np.ndarray], count: int) -> None:
    """Add a part of a mean over `count` networks to each name's sum."""
    for name, part in parts.items():
        sums[name] = sums.get(name, 0) + part.astype(np.float64) / count


def network_predictions(
    config: Config,
    data: Dataset,
    stage1: Path,
    directory: Path,
    accelerator: Accelerator,
    statistics: Path | None = None,
) -> Predictions:
    """Mean logits and features over the views of one network, from the cache if there.

    statistics: of batch norm, from a stage-2 head with `bn: train`; the logits are then of no use
    """
    views = tta_views(config.predict.tta)
    key = {
        "weights": sha256(stage1 / "weights.safetensors"),
        "test": sha256(data.directory / "test.csv"),
        "views": [asdict(view) for view in views],
    }
    if statistics is not None:
        key["statistics"] = sha256(statistics)
    cache = directory / "cache"
    merged = cache / f"{stage1.name}-{digest(key)[:12]}.npz"
    parts = [
        cache / f"{stage1.name}-{digest(key | {'views': asdict(view)})[:12]}.view.npz"
        for view in views
    ]
    keep = config.predict.keep_views
    if keep:
        kept = directory / _views_of(stage1.name, statistics)
        if accelerator.is_main_process:
            keep_views(kept, key, parts)
        parts = view_files(kept, len(views))
        accelerator.wait_for_everyone()
    if merged.is_file() and (not keep or all(path.is_file() for path in parts)):
        return load_predictions(merged, data.num_classes)
    _run_views(config, data, stage1, parts, accelerator, statistics)
    mean = _mean([load_predictions(path, data.num_classes) for path in parts])
    accelerator.wait_for_everyone()  # all have looked what is there, and have read the views
    if accelerator.is_main_process:
        mean.save(merged)
        for path in () if keep else parts:
            path.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return mean


def _run_views(
    config: Config,
    data: Dataset,
    stage1: Path,
    parts: list[Path],
    accelerator: Accelerator,
    statistics: Path | None,
) -> None:
    """Write the predictions of each view to its file of `parts`, unless it is there."""
    network, prep = load_network(stage1 / "weights.safetensors", data)
    if statistics is not None:
        load_statistics(statistics, network)
    network.to(accelerator.device)
    views = tta_views(config.predict.tta)
    for i, (view, path) in enumerate(zip(views, parts, strict=True)):
        if path.is_file():
            continue
        found = run_network(
            network,
            data.test,
            EvalTransform(prep, view),
            prep,
            accelerator,
            batch_size=config.train.eval_batch_size,
            workers=config.data.workers,
            label=f"{stage1.name}, view {i + 1}/{len(views)}",
        )
        if accelerator.is_main_process:
            found.save(path)
        accelerator.wait_for_everyone()


def _mean(parts: list[Predictions]) -> Predictions:
    ids = parts[0].image_id
    aligned = [part.take(ids) for part in parts]
    logits, features = (
        np.mean([getattr(p, n) for p in aligned], 0) for n in ("logits", "features")
    )
    return replace(aligned[0], logits=logits, features=features)


def _kept_views(config: Config, heads: dict[str, dict[str, Path]]) -> list[str]:
    """Names below predict/ of all views' files; none unless predict.keep_views."""
    if not config.predict.keep_views:
        return []
    count = len(tta_views(config.predict.tta))
    passes = [(n, path) for n in heads for path in (None, *_statistics(heads[n]).values())]
    found = [path for p in passes for path in view_files(Path(_views_of(*p)), count)]
    return [path.as_posix() for path in found]


def _views_of(network: str, statistics: Path | None) -> str:
    """Directory below predict/ of a network's views; a head with its own batch norm has its own."""
    return f"views/{network}" + (f"/{statistics.parents[1].name}" if statistics else "")


def _statistics(heads: dict[str, Path]) -> dict[str, Path]:
    """The heads that changed the backbone's batch norm, and the files that say how."""
    files = {name: path.with_name(STATISTICS) for name, path in heads.items()}
    return {name: path for name, path in files.items() if path.is_file()}


def _head_files(home: Path, config: Config, network: str) -> dict[str, Path]:
    """By name, the heads of a network and those that 03 trained on it. Where a network has several
    branches, its own logits are no head's."""
    found = {}
    for name in config.head_names:
        if name == STAGE1 and config.model.network.branches:
            continue
        path = head_path(home, name, network)
        require(path.with_name(MANIFEST), script_of(name))
        found[name] = require(path, script_of(name))
    return found
