"""One network to train."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator

from src.artifacts.dataset import Dataset, fold_name
from src.config.schema import Config
from src.data.transforms import Preprocessing
from src.networks.freeze import Rest
from src.networks.kept import Kept, body_of
from src.training.pseudo import PseudoRows

if TYPE_CHECKING:
    from src.training.taught import Taught  # slow to import


@dataclass(frozen=True)
class Fold:
    """One network to train. fold None means `full`: every image, nothing held out.

    searched: values by key that the config has from a search · decided: a line on each value that
    it has from the data · pseudo: test images that are trained on as well · taught: what teachers
    say · again: what all networks of a command have in common has been said
    """

    config: Config
    data: Dataset
    fold: int | None
    directory: Path
    accelerator: Accelerator
    searched: dict = field(default_factory=dict)
    decided: tuple[str, ...] = ()
    pseudo: PseudoRows | None = None
    taught: Taught | None = None
    again: bool = False

    @property
    def name(self) -> str:
        return fold_name(self.fold)

    def kept(self, rest: Rest | None, prep: Preprocessing) -> Kept | None:
        """Where features of a network are that all folds may share. rest: of it"""
        body = body_of(rest, self.config.model, prep)
        images = self.data.directory / "folds.csv"
        return body and Kept(self.directory.parent / "features", body, images)
