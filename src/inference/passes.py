"""One network over images in all views, resumable: the mean of its features and logits.

Each view is a file until all are merged (`predict/cache/`); what was done before a kill is not done
again. For linear heads the mean of the features gives exactly the mean of the logits. Test images
go through every network; out-of-fold images, to learn what views are worth, through the network of
the fold that held them out.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import Accelerator

from src.artifacts.dataset import Dataset, fold_of
from src.artifacts.files import sha256
from src.artifacts.predictions import Predictions, load_predictions
from src.artifacts.work import digest
from src.config.schema import Config
from src.data.transforms import EvalTransform, View
from src.inference.views import keep_views, tta_views, view_files
from src.networks.batchnorm import load_statistics
from src.networks.forward import run_network
from src.networks.kept import kept_features

SHARED = (
    "cache/shared"  # features that several networks have of the test images, until all are done
)


@dataclass(frozen=True)
class Pass:
    """stage1: directory of the network · statistics: of batch norm, from a stage-2 head with
    `bn: train`, whose pass this is; the logits are then of no use · held_out: over the images that
    the network's fold held out, instead of the test images"""

    stage1: Path
    statistics: Path | None = None
    held_out: bool = False

    def images(self, data: Dataset) -> pd.DataFrame:
        return data.held_out(fold_of(self.stage1)) if self.held_out else data.test

    def key(self, data: Dataset) -> dict:
        """What the predictions depend on beside the views."""
        table = "folds" if self.held_out else "test"
        key = {
            "weights": sha256(self.stage1 / "weights.safetensors"),
            table: sha256(data.directory / f"{table}.csv"),
        }
        return key | ({"statistics": sha256(self.statistics)} if self.statistics else {})

    def cache(self, directory: Path, key: dict, ending: str) -> Path:
        prefix = f"{self.stage1.name}-oof" if self.held_out else self.stage1.name
        return directory / "cache" / f"{prefix}-{digest(key)[:12]}{ending}"

    @property
    def kept(self) -> str:
        """Directory below predict/ of its views; a head with its own batch norm has its own."""
        own = f"/{self.statistics.parents[1].name}" if self.statistics else ""
        return f"views/{self.stage1.name}{own}"


def network_predictions(
    config: Config,
    data: Dataset,
    one: Pass,
    directory: Path,
    accelerator: Accelerator,
    weights: list[float] | None = None,
) -> Predictions:
    """Mean logits and features over the views, from the cache if there.

    directory: predict/ · weights: of the views, sum 1; None: equal
    """
    merged = merged_file(config, data, one, directory, weights)
    parts, stay = _parts(config, data, one, directory, accelerator)
    keep = config.predict.keep_views and not one.held_out
    if merged.is_file() and (not keep or all(path.is_file() for path in parts)):
        return load_predictions(merged, data.num_classes)
    _run_views(config, data, one, parts, directory, accelerator)
    mean = mean_of(parts, data.num_classes, weights)
    accelerator.wait_for_everyone()  # all have looked what is there, and have read the views
    if accelerator.is_main_process:
        mean.save(merged)
        for path in () if stay else parts:
            path.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return mean


def merged_file(
    config: Config, data: Dataset, one: Pass, directory: Path, weights: list[float] | None = None
) -> Path:
    """Where `network_predictions` puts the mean."""
    key = one.key(data) | {"views": [view.as_dict() for view in tta_views(config.predict.tta)]}
    return one.cache(directory, key | ({"shares": weights} if weights else {}), ".npz")


def view_parts(
    config: Config, data: Dataset, one: Pass, directory: Path, accelerator: Accelerator
) -> list[Path]:
    """Files of the single views, in the order of `tta_views`; those that lack are made."""
    parts, _ = _parts(config, data, one, directory, accelerator)
    _run_views(config, data, one, parts, directory, accelerator)
    accelerator.wait_for_everyone()
    return parts


def mean_of(parts: list[Path], num_classes: int, weights: list[float] | None = None) -> Predictions:
    """The mean of views, of which one at a time is in memory; features where they exist."""
    shares = weights or [1.0] * len(parts)
    found = load_predictions(parts[0], num_classes)
    sums = [np.float32(shares[0]) * getattr(found, name) for name in ("logits", "features")]
    for path, share in zip(parts[1:], shares[1:], strict=True):
        part = load_predictions(path, num_classes).take(found.image_id)
        for total, name in zip(sums, ("logits", "features"), strict=True):
            total += np.float32(share) * getattr(part, name)
    logits, features = sums if weights else [total / len(parts) for total in sums]
    return replace(found, logits=logits, features=features)


def _parts(
    config: Config, data: Dataset, one: Pass, directory: Path, accelerator: Accelerator
) -> tuple[list[Path], bool]:
    """Where each view's predictions are, or will be; and whether they stay after the merge: where
    they are asked for, and where other weights may be fitted to them."""
    views = [view.as_dict() for view in tta_views(config.predict.tta)]
    key = one.key(data) | {"views": views}
    cached = [one.cache(directory, key | {"views": view}, ".view.npz") for view in views]
    if not config.predict.keep_views or one.held_out:
        return cached, config.predict.tta.weights == "fitted"
    kept = directory / one.kept
    if accelerator.is_main_process:
        keep_views(kept, key, cached)
    accelerator.wait_for_everyone()
    return view_files(kept, len(views)), True


def _run_views(
    config: Config,
    data: Dataset,
    one: Pass,
    parts: list[Path],
    directory: Path,
    accelerator: Accelerator,
) -> None:
    """Write the predictions of each view to its file of `parts`, unless it is there."""
    if all(path.is_file() for path in parts):
        return
    from src.networks.weights import load_network  # slow to import

    views = tta_views(config.predict.tta)
    weights, shared = one.stage1 / "weights.safetensors", None
    network, prep = load_network(weights, data)
    if not one.held_out and one.statistics is None:
        shared = kept_features(weights, directory / SHARED, data.directory / "test.csv")
    if one.statistics is not None:
        load_statistics(one.statistics, network)
    network.to(accelerator.device)
    for i, (view, path) in enumerate(zip(views, parts, strict=True)):
        if path.is_file():
            continue
        if one.held_out and view == View() and one.statistics is None:
            found = load_predictions(one.stage1 / "oof.npz", data.num_classes)  # 02 has been there
        else:
            found = run_network(
                network,
                one.images(data),
                EvalTransform(prep, view),
                prep,
                accelerator,
                batch_size=config.train.eval_batch_size,
                workers=config.data.workers,
                label=f"{one.stage1.name}, view {i + 1}/{len(views)}"
                + (" (out of fold)" if one.held_out else ""),
                kept=shared,
            )
        accelerator.wait_for_everyone()  # all have looked whether it is there
        if accelerator.is_main_process:
            found.save(path)
        accelerator.wait_for_everyone()
