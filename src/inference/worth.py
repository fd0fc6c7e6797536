"""What views are worth on images that no network was trained on, and the weights they deserve.

Out-of-fold images go through the network of the fold that held them out, in all views, and through
what 04 fitted without that fold. With z_v the logits of view v,

    z(n, c) = Σ_v w_v z_v(n, c),   w = softmax(θ) by likelihood      (src/fusion/likelihood.py)

as members of an ensemble are weighed, for each fold on the others; kept where the section `judge`
keeps it, over equal weights. views.json says all of it, and predict/manifest.json in short.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from src import cli
from src.artifacts.dataset import Dataset, fold_of
from src.artifacts.files import read_json, write_json
from src.artifacts.oof import check_held_out
from src.artifacts.predictions import Predictions, load_predictions
from src.artifacts.work import require
from src.config.ensemble import ByLikelihood
from src.config.schema import Config
from src.fusion.likelihood import grouped_weights
from src.fusion.network import all_logits, without_fold
from src.fusion.pool import Members, Pool
from src.fusion.store import RECIPE
from src.inference.heads import Trained
from src.inference.passes import (
    Pass,
    mean_of,
    merged_file,
    network_predictions,
    view_parts,
)
from src.inference.views import tta_views
from src.metrics import OUTCOMES, SCORES, paired_gain, rule_text

FILE = "views.json"
FITTED_ON = 2**27  # numbers, of all views' logits, on which weights are fitted: 512 MiB


@dataclass(frozen=True)
class Worth:
    """weights: of the views; None: equal · facts: for the manifest"""

    weights: list[float] | None = None
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class OutOfFold:
    """What the out-of-fold images look like in each view, from files: nothing here is together
    with other processes.

    networks: by fold · recipe: of 04 · parts: files of each pass's views, where weights are fitted
    """

    config: Config
    data: Dataset
    networks: dict[int, Trained]
    recipe: dict
    directory: Path
    parts: dict[Pass, list[Path]]

    def final(self, fold: int, load: Callable[[Pass], Predictions]) -> Predictions:
        """Logits [n, K] behind all heads and 04's steps, as fitted without this fold, of what
        `load` says of its network's passes."""
        network, origin = self.networks[fold], self.directory.parent / "posthoc" / RECIPE
        recipe = without_fold(self.recipe, fold, origin)
        found, own = network.predictions(load, held_out=True)
        counts = self.data.counts(self.data.images)
        logits = all_logits(found, own, network.heads(), recipe, counts)
        return found.with_logits(logits["posthoc"])

    def mean(self, fold: int, weights: list[float] | None = None) -> Predictions:
        """Of all views; weights: None: equal."""

        def load(one: Pass) -> Predictions:
            if weights is not None:
                return mean_of(self.parts[one], self.data.num_classes, weights)
            path = merged_file(self.config, self.data, one, self.directory)
            return load_predictions(path, self.data.num_classes)

        return self.final(fold, load)

    def view(self, fold: int, number: int, rows: np.ndarray) -> Predictions:
        """One view of the images `rows` (a mask, [n])."""

        def load(one: Pass) -> Predictions:
            return load_predictions(self.parts[one][number], self.data.num_classes).rows(rows)

        return self.final(fold, load)

    def outcome(self, found: Predictions) -> np.ndarray:
        return OUTCOMES[self.config.metric](found.logits, found.label)


def worth_of_views(
    config: Config,
    data: Dataset,
    networks: list[Trained],
    recipe: dict,
    directory: Path,
    accelerator: Accelerator,
) -> Worth:
    """Pass the out-of-fold images through all views, if asked, and write views.json.

    recipe: of 04 · directory: predict/, beside posthoc/. Errors: UserError when 04's predictions
    are missing, or of other folds.
    """
    if not config.predict.tta.measured:
        return Worth()
    by_fold = {k: n for n in networks for k in (fold_of(n.stage1),) if k is not None}
    parts: dict[Pass, list[Path]] = {}
    for one in (one for network in by_fold.values() for one in network.passes(held_out=True)):
        network_predictions(config, data, one, directory, accelerator)
        if config.predict.tta.weights == "fitted":
            parts[one] = view_parts(config, data, one, directory, accelerator)
    if accelerator.is_main_process:
        seen = OutOfFold(config, data, by_fold, recipe, directory, parts)
        write_json(directory / FILE, measured(seen))
    accelerator.wait_for_everyone()
    found = read_json(directory / FILE, {"kept": bool, "gain": dict})
    return Worth(
        found["weights"] if found["kept"] else None,
        {"view_weights": found["weights"], "views_gain": found["gain"]},
    )


def measured(seen: OutOfFold) -> dict:
    """views.json. gain: of what is used over the evaluation view alone, in the metric; weights: of
    the views that are used; kept: whether those are the fitted ones, reason: why."""
    config, data, folds = seen.config, seen.data, list(seen.networks)
    one_view = _evaluation_view(seen)
    labels = np.concatenate([one_view[k].label for k in folds])
    before = np.concatenate([seen.outcome(one_view[k]) for k in folds])
    used = np.concatenate([seen.outcome(seen.mean(k)) for k in folds])
    views = tta_views(config.predict.tta)
    found = {"kept": False, "reason": "equal weights were asked for"}
    weights = [1 / len(views)] * len(views)
    if config.predict.tta.weights == "fitted":
        found, fitted, outcome = fitted_weights(seen, labels, used)
        if found["kept"]:
            weights, used = fitted, outcome
        cli.say(
            f"weights of the views: {'fitted' if found['kept'] else 'equal'}, {found['reason']}"
        )
    gain = paired_gain(before, used, labels, data.num_classes, config.metric)
    scores = [SCORES[config.metric](x, labels, data.num_classes) for x in (before, used)]
    return {
        "views": [view.as_dict() for view in views],
        "weights": weights,
        **found,
        "rule": rule_text(config.judge),
        "gain": {
            "metric": config.metric,
            **dict(zip(("one_view", "all_views"), scores, strict=True)),
            **gain.named(),
            "images": len(labels),
        },
    }


def _evaluation_view(seen: OutOfFold) -> dict[int, Predictions]:
    """By fold, 04's cross-fitted predictions, which are of the evaluation view."""
    path = require(seen.directory.parent / "posthoc" / "oof.npz", "04_posthoc_calibrate.py")
    whole = load_predictions(path, seen.data.num_classes)
    check_held_out(whole, seen.data, path)
    return {k: whole.rows(whole.fold == k) for k in seen.networks}


def fitted_weights(
    seen: OutOfFold, labels: np.ndarray, equal: np.ndarray
) -> tuple[dict, list[float], np.ndarray]:
    """Facts with `kept` and `reason`; weights fitted on all folds; and outcomes [N] with those that
    were fitted on the others. equal: outcomes [N] with equal weights"""
    config, folds, count = seen.config, list(seen.networks), len(tta_views(seen.config.predict.tta))
    even = [1 / count] * count
    if len(folds) < 2 or count < 2:
        needed = "two folds or more, to be judged on what they never saw"
        reason = "there is one view" if count < 2 else f"fitted weights need {needed}"
        return {"kept": False, "reason": reason}, even, equal
    pool, fold = pool_of_views(seen, count)
    per_fold = {k: _weights(pool, fold != k) for k in folds}
    outcome = np.concatenate([seen.outcome(seen.mean(k, per_fold[k])) for k in folds])
    gain = paired_gain(equal, outcome, labels, seen.data.num_classes, config.metric)
    fails = gain.fails(config.judge)
    final = _weights(pool, np.ones(len(fold), bool))
    facts = {
        "kept": fails is None,
        "reason": f"fitted weights' cross-fitted gain over equal ones {gain}"
        + (f" {fails}" if fails else ""),
        "fitted": {
            "weights": final,
            "per_fold": {str(k): w for k, w in per_fold.items()},
            "images": len(fold),
            **gain.named(),
        },
    }
    return facts, final, outcome


def pool_of_views(seen: OutOfFold, count: int) -> tuple[Pool, np.ndarray]:
    """Views as members, and each image's fold [n]: of all images, or of as many as FITTED_ON has
    room for, drawn with the config's seed."""
    sizes = {k: len(seen.data.held_out(k)) for k in seen.networks}
    share = min(1.0, FITTED_ON / (count * seen.data.num_classes * sum(sizes.values())))
    rng = np.random.default_rng(seen.config.seed)
    rows = {k: rng.permutation(n) < max(1, int(share * n)) for k, n in sizes.items()}
    members: Members = []
    for number in range(count):
        parts = [seen.view(k, number, rows[k]) for k in seen.networks]
        members.append(np.concatenate([part.logits for part in parts]))
    labels = np.concatenate([part.label for part in parts])
    fold = np.concatenate([part.fold for part in parts])
    return Pool(members, labels, seen.config.metric), fold


def _weights(pool: Pool, rows: np.ndarray) -> list[float]:
    one_group = np.zeros(pool.num_classes, int)
    return grouped_weights(pool, rows, one_group, ByLikelihood())[:, 0].tolist()
