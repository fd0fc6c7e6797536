"""The heads of a trained network, and how far images are from what they compare with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.artifacts.heads import head_path, load_head
from src.artifacts.oof import script_of
from src.artifacts.predictions import Predictions
from src.artifacts.work import MANIFEST, require
from src.config.names import STAGE1
from src.config.schema import Config
from src.fusion.step import Head
from src.inference.passes import Pass
from src.logits import head_distance
from src.networks.batchnorm import FILE as STATISTICS


@dataclass(frozen=True)
class Trained:
    """A network that 02 finished, and its heads.

    stage1: its directory · files: of its heads and those that 03 trained on it, by name
    """

    stage1: Path
    files: dict[str, Path]

    @property
    def name(self) -> str:
        return self.stage1.name

    @property
    def statistics(self) -> dict[str, Path]:
        """The heads that changed the backbone's batch norm, and the files that say how."""
        files = {name: path.with_name(STATISTICS) for name, path in self.files.items()}
        return {name: path for name, path in files.items() if path.is_file()}

    def inputs(self) -> dict[str, Path]:
        """All it is made of, by name."""
        found = {"weights": self.stage1 / "weights.safetensors", **self.files}
        found |= {f"{name}/{STATISTICS}": path for name, path in self.statistics.items()}
        return {f"{self.name}/{name}": path for name, path in found.items()}

    def heads(self) -> dict[str, Head]:
        return {name: load_head(path) for name, path in self.files.items()}

    def passes(self, held_out: bool = False) -> list[Pass]:
        """Its own, and one for each of `statistics`."""
        return [Pass(self.stage1, s, held_out) for s in (None, *self.statistics.values())]

    def predictions(
        self, load: Callable[[Pass], Predictions], held_out: bool = False
    ) -> tuple[Predictions, dict[str, Predictions]]:
        """Of its own pass, and of the passes of `statistics` by the head's name."""
        first, *others = map(load, self.passes(held_out))
        return first, dict(zip(self.statistics, others, strict=True))


def trained_heads(stage1: Path, config: Config) -> Trained:
    """Where a network has several branches, its own logits are no head's.

    Errors: UserError for a head that 02 or 03 has not finished.
    """
    home, found = stage1.parents[1], {}
    for name in config.head_names:
        if name == STAGE1 and config.model.network.branches:
            continue
        path = head_path(home, name, stage1.name)
        require(path.with_name(MANIFEST), script_of(name))
        found[name] = require(path, script_of(name))
    return Trained(stage1, found)


def all_distances(
    found: Predictions, own: dict[str, Predictions], loaded: dict[str, Head]
) -> dict[str, np.ndarray]:
    """Distance [N] of each head that compares features with something; arguments
    as in src/fusion/network.py."""
    distances = {
        name: head_distance(own.get(name, found).features, arrays, kind)
        for name, (kind, arrays) in loaded.items()
    }
    return {name: distance for name, distance in distances.items() if distance is not None}
