"""Test images → test logits of every head, averaged over views and networks.

The backbone runs once per network and view, or per view where all networks have the same frozen one
(src/networks/kept.py). Its features and logits are kept per network as means over the views
(`predict/cache/`, see passes.py), so a new head or a new calibration costs seconds.
With predict.keep_views each view's own stay, in `predict/views/`; with predict.keep_networks each
network's final ones, in `predict/networks/`. What the views are worth, and which weights they get,
is for worth.py.
"""

import shutil
from pathlib import Path

import numpy as np

from src.artifacts.dataset import finished_networks, fold_of, load_dataset
from src.artifacts.marks import marks
from src.artifacts.parts import check_posthoc
from src.artifacts.predictions import network_file
from src.artifacts.trained import trained_config
from src.artifacts.work import RUNS, Work, require
from src.config.schema import Config
from src.errors import UserError
from src.fusion import check_recipe
from src.fusion.network import all_logits
from src.fusion.store import ARRAYS, RECIPE, load_recipe
from src.inference.heads import Trained, all_distances, trained_heads
from src.inference.networks import keep_network
from src.inference.passes import SHARED, network_predictions
from src.inference.views import tta_views, view_files
from src.inference.worth import FILE as VIEWS
from src.inference.worth import worth_of_views
from src.metrics import chunks
from src.runtime import start


def predict(
    config: Config, experiment: str, overwrite: bool, folds: list[str] = ()
) -> dict[str, Path]:
    """Write predict/<head>.npz for stage1, every stage-2 head and posthoc; returns their paths.

    folds: numbers and `full`; none: all that 02 finished. Errors: UserError when an earlier stage
    is missing or was run on other folds, or there are no test images.
    """
    data = load_dataset(config.dataset).choose(folds)
    if data.test.empty:
        raise UserError(f"{data.directory / 'test.csv'} lists no images; set data.test, run 01")
    home = RUNS / config.dataset / experiment
    config = trained_config(config, home)
    accelerator = start(config.train.precision)
    names = config.head_names
    networks = [trained_heads(path, config) for path in finished_networks(home, data)]
    posthoc = require(home / "posthoc" / RECIPE, "04_posthoc_calibrate.py").parent
    check_posthoc(posthoc, data)
    inputs = {name: data.directory / name for name in ("folds.csv", "test.csv")}
    inputs |= {n: posthoc / n for n in (RECIPE, ARRAYS) if (posthoc / n).is_file()}
    for network in networks:
        inputs |= network.inputs()
    main = accelerator.is_main_process
    with accelerator.main_process_first():
        work = Work(home / "predict", config.predict, inputs, overwrite=overwrite, main=main)
        views = _files_of_views(config, networks)
        asked = config.predict.keep_networks
        kept = [network_file(network.name, head) for network in networks for head in asked]
        finished = work.finished(wanted=[*views, *kept])
    paths = {name: home / "predict" / f"{name}.npz" for name in (*names, "posthoc")}
    if finished:
        return paths
    recipe, counts = load_recipe(posthoc), data.counts(data.images)
    check_recipe(recipe, names, posthoc / RECIPE)
    worth = worth_of_views(config, data, networks, recipe, work.directory, accelerator)
    sums: dict[str, np.ndarray] = {}
    distances: dict[str, np.ndarray] = {}
    for network in networks:
        found, own = network.predictions(
            lambda one: network_predictions(
                config, data, one, work.directory, accelerator, worth.weights
            )
        )
        loaded = network.heads()
        logits = all_logits(found, own, loaded, recipe, counts)
        _add(sums, logits, len(networks))
        _add(distances, all_distances(found, own, loaded), len(networks))
        if main:
            whose = (network.name, fold_of(network.stage1))
            keep_network(work.directory, whose, asked, found, logits, loaded, recipe, counts)
    if main:
        for name, path in paths.items():
            found.with_logits(sums[name], distances.get(name)).save(work.directory / path.name)
        shutil.rmtree(work.directory / SHARED, ignore_errors=True)
        work.finish(
            [*(path.name for path in paths.values()), *views, *kept],
            networks=[network.name for network in networks],
            views=[view.as_dict() for view in tta_views(config.predict.tta)],
            **worth.facts,
            **marks(home),
        )
    accelerator.wait_for_everyone()
    return paths


def _add(sums: dict[str, np.ndarray], parts: dict[str, np.ndarray], count: int) -> None:
    """Add a part of a mean over `count` networks to each name's sum, in place and in chunks: there
    is a sum [M, K] of every head already."""
    for name, part in parts.items():
        total = sums.setdefault(name, np.zeros(part.shape, np.float32))
        for rows in chunks(len(part), part[:1].size):
            total[rows] += part[rows] / np.float32(count)


def _files_of_views(config: Config, networks: list[Trained]) -> list[str]:
    """Names below predict/ of what views are asked for: views.json, and with predict.keep_views
    each view's own predictions."""
    asked = [VIEWS] if config.predict.tta.measured else []
    if not config.predict.keep_views:
        return asked
    count = len(tta_views(config.predict.tta))
    kept = [Path(one.kept) for network in networks for one in network.passes()]
    return asked + [path.as_posix() for at in kept for path in view_files(at, count)]
