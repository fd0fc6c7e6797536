"""Features of a frozen body, made once for all networks that share it.

    f(x) = body(view(x))     [D], once per body, image and view: what is on disk is read
    z_k(x) = head_k(f(x))    [K], of network k

The body is a network's tensors but those of its head. Where nothing trained it, the networks of all
folds have the same one, and a pass of one of them is a pass of all. Its weights file says so
(`Rest.body`), and gives the hash that the file of features is named by.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import Accelerator

from src.artifacts.files import sha256
from src.artifacts.lock import locked
from src.artifacts.predictions import Predictions, load_features, save_features
from src.artifacts.tensors import AGAIN, read_shapes
from src.artifacts.work import digest
from src.config.model import Model
from src.config.tree import dump_config
from src.data.transforms import Preprocessing, View
from src.networks.freeze import Rest

Known = tuple[np.ndarray, np.ndarray]  # ids [N], sorted, and features [N, D]


@dataclass(frozen=True)
class Kept:
    """Where the features of a body are. images: folds.csv or test.csv, in which they are listed"""

    directory: Path
    body: dict
    images: Path

    def path(self, view: View, precision: str) -> Path:
        key = {"body": self.body, "view": view.as_dict(), "precision": precision}
        key |= {"images": sha256(self.images)}
        return self.directory / f"{self.images.stem}-{digest(key)[:12]}.npz"

    def features(
        self,
        table: pd.DataFrame,
        view: View,
        accelerator: Accelerator,
        run: Callable[[pd.DataFrame], Predictions],
    ) -> np.ndarray:
        """[N, D] of the rows of `table`, by image_id. run: passes the rows that lack through the
        body, all processes together; it is not called where none does."""
        path = self.path(view, accelerator.mixed_precision)
        known = load_features(path) if path.is_file() else None
        accelerator.wait_for_everyone()  # all have looked what is there
        lacking = table if known is None else table[~table["image_id"].isin(known[0])]
        if len(lacking):
            found = run(lacking)
            known = _union(known, (found.image_id, found.features))
            if accelerator.is_main_process:
                with locked(self.directory):  # other folds may be at work in another command
                    there = load_features(path) if path.is_file() else None
                    save_features(path, *_union(there, known))
            accelerator.wait_for_everyone()
        ids, features = known
        return features[np.searchsorted(ids, np.sort(table["image_id"].to_numpy(dtype=str)))]


def _union(known: Known | None, new: Known) -> Known:
    """Rows of both, of those that are in both the known ones."""
    if known is None:
        return new
    fresh = ~np.isin(new[0], known[0])
    ids, features = (np.concatenate([a, b[fresh]]) for a, b in zip(known, new, strict=True))
    order = np.argsort(ids, kind="stable")
    return ids[order], features[order]


def body_of(rest: Rest | None, model: Model, prep: Preprocessing) -> dict | None:
    """What features of a network depend on beside the image; None: training changed the body."""
    if rest is None or not rest.body:
        return None
    about = {"model": dump_config(model), "preprocessing": prep.as_dict()}
    return described(about | {"frozen": rest.facts()})


def described(about: dict | None) -> dict | None:
    """The same from the header of a weights file."""
    frozen = (about or {}).get("frozen") or {}
    if not frozen.get("body"):
        return None
    return {key: about[key] for key in ("model", "preprocessing")} | {"sha256": frozen["sha256"]}


def kept_features(path: Path, directory: Path, images: Path) -> Kept | None:
    """Where features are of the network in the file at `path`, from the header alone; None where
    its body was trained. images: folds.csv or test.csv"""
    body = described(read_shapes(path, AGAIN)[0])
    return body and Kept(directory, body, images)
