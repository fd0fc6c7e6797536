"""Which test images look like none of the classes.

An image is flagged when its score is above the q-quantile of the scores of the out-of-fold images,
all of which are of known classes: by design a share 1 - q of the known is flagged, too. The score
is a head's `distance` (src/artifacts/predictions.py; Bendale & Boult, CVPR 2016 reject by distance
to class means likewise), or 1 - the largest probability (Hendrycks & Gimpel, ICLR 2017).
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.artifacts.dataset import Dataset
from src.artifacts.ids import check_same_ids
from src.artifacts.oof import load_oof
from src.artifacts.predictions import load_predictions
from src.artifacts.work import RUNS
from src.config.schema import Config
from src.config.submission import UnknownClass
from src.errors import UserError
from src.metrics import chunks

PROBABILITY = "probability"


@dataclass(frozen=True)
class Flags:
    """flagged: [M] · score: what it rests on · threshold: of that · held_out: share of the
    out-of-fold images above it"""

    flagged: np.ndarray
    score: str
    threshold: float
    held_out: float

    def facts(self) -> dict:
        return {
            "score": self.score,
            "threshold": self.threshold,
            "flagged": int(self.flagged.sum()),
            "flagged_held_out": self.held_out,
        }

    def __str__(self) -> str:
        return (
            f"{self.flagged.sum()} of {len(self.flagged)} test images are of the unknown class: "
            f"{self.score} above {self.threshold:.4g}, as {100 * self.held_out:.1f} % of the "
            "out-of-fold images, all of known classes, are"
        )


def flags(
    section: UnknownClass,
    configs: list[Config],
    experiments: list[str],
    dataset: Dataset,
    log_probabilities: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> Flags:
    """log_probabilities: gives those of the ensemble, cross-fitted [N, K] and of test [M, K], rows
    sorted by image_id; asked only where no distance is used.

    Errors: UserError when the head that `section` names has no distance.
    """
    homes = [
        RUNS / config.dataset / name for config, name in zip(configs, experiments, strict=True)
    ]
    head = section.head or _with_distance(homes, configs)
    if head == PROBABILITY:
        known, test = (doubt(z) for z in log_probabilities())
        score = "1 - largest probability"
    else:
        known, test = _distances(homes, head, dataset)
        score = f"distance of {head}"
    threshold = float(np.quantile(known, section.quantile))
    return Flags(test > threshold, score, threshold, float(np.mean(known > threshold)))


def doubt(logits: np.ndarray) -> np.ndarray:
    """1 - the largest probability, [N]."""
    out = np.empty(len(logits))
    for rows in chunks(*logits.shape):
        z = logits[rows].astype(np.float64)
        out[rows] = 1 - 1 / np.exp(z - z.max(1, keepdims=True)).sum(1)
    return out


def _with_distance(homes: list[Path], configs: list[Config]) -> str:
    """The first head of stage2, else stage 1's, that has distances in an experiment."""
    names = [head for config in configs for head in config.head_names]
    first = sorted(dict.fromkeys(names), key=lambda name: name.startswith("stage1"))
    return next((n for n in first if any(_has(home, n) for home in homes)), PROBABILITY)


def _has(home: Path, head: str) -> bool:
    path = home / "predict" / f"{head}.npz"
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "distance.npy" in archive.namelist()


def _distances(homes: list[Path], head: str, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Of out-of-fold images [N] and test images [M], averaged over the experiments that have it."""
    found = []
    for home in homes:
        if not _has(home, head):
            continue
        path = home / "predict" / f"{head}.npz"
        oof, test = load_oof(home, head, dataset), load_predictions(path, dataset.num_classes)
        check_same_ids(test.image_id, dataset.test["image_id"], str(path), "test.csv")
        if oof.distance is not None:
            found.append((oof.distance, test.distance))
    if not found:
        raise UserError(
            f"submission.unknown.head: {head} has no `distance`, neither in "
            f"{homes[0] / 'predict' / f'{head}.npz'} nor in its oof.npz files. Heads that compare "
            "(ncm, knn, cosine, subcentre) have one; or set it to `probability`."
        )
    known, test = zip(*found, strict=True)
    return np.mean(known, axis=0), np.mean(test, axis=0)
