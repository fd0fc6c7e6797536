"""Pseudo-labels (Lee, ICML workshops 2013): a second round of stage 1 also trains on test images,
labelled by the networks of a first round.

Which: of each group g of predicted classes, in the order of p_i, the probability of the predicted
class (ties by image_id), the first n_g with p_i ≥ `min_confidence`,

    n_g = ⌈share · M · w_g⌉,   M: test images, w_g: the group's part by `prior`, Σ_g w_g = 1

With `prior: predicted` these are the thresholds per class of Zou et al. (ECCV 2018, eq. 8); with
`balanced`, rare classes are not drowned, as in Wei et al. (CVPR 2021, "CReST", section 3.2), who
found what is predicted as a rare class to be right more often than the rest.

What an image i counts as: with weight ω, and q_i = softmax(z_i / T) over its likeliest classes,

    hard   ω L(z, argmax z_i)
    soft   ω Σ_c q_ic L(z, c), for cross-entropy that of the target q_i

Counts N_c that feed priors, margins and class weights are the mass that the loss sees: true labels
and ω q_ic of each row. Samplers draw rows by the predicted class.

Several first rounds: z is the mean of their log-probabilities.

What keeps out-of-fold scores honest: fold k's rows come from fold k's network of the first round
alone, whose calibration 04 chose on the other folds. The mean of all networks, which is better,
knows what fold k holds out; it labels for `full`, where nothing is held out. Stage 2, and head
initialisers, see true labels only.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax, softmax

from src.artifacts.dataset import INPUTS, Classes, Dataset, check_same_folds, fold_name
from src.artifacts.files import read_json, sha256
from src.artifacts.ids import check_same_ids
from src.artifacts.predictions import load_predictions, network_file
from src.artifacts.work import MANIFEST, RUNS
from src.config.pseudo import Pseudo
from src.config.schema import Config
from src.data.dataset import Targets
from src.errors import UserError, some
from src.metrics import outcomes_of
from src.training.earlier import flatters

FILE = "pseudo.csv"  # in the fold's directory: what was chosen


@dataclass(frozen=True)
class PseudoRows:
    """Test images to train on. table: image_id, path, label, class_id, confidence, sorted by
    image_id · labels, shares: [n, m], as in `Targets` · facts: for the manifest"""

    table: pd.DataFrame
    labels: np.ndarray
    shares: np.ndarray
    facts: dict

    def added(self, images: pd.DataFrame) -> pd.DataFrame:
        """The training table: `image_id`, `path` and `label` of `images`, then of these."""
        columns = ["image_id", "path", "label"]
        return pd.concat([images[columns], self.table[columns]], ignore_index=True)

    def counted(self, classes: Classes) -> np.ndarray:
        """[K] images of each class, these by their shares; whole numbers where those are whole."""
        mass = np.bincount(self.labels.ravel(), self.shares.ravel(), minlength=classes.num)
        found = classes.counts + mass
        return found.astype(int) if (found == np.rint(found)).all() else found

    def targets(self, images: pd.DataFrame) -> Targets | None:
        """Of all rows of `added`; None where every row counts for its label and as 1."""
        if self.shares.shape[1] == 1 and (self.shares == 1).all():
            return None
        own = images["label"].to_numpy()
        labels = np.repeat(own[:, None], self.labels.shape[1], 1)
        shares = np.zeros(labels.shape)
        shares[:, 0] = 1
        return Targets(
            torch.from_numpy(np.concatenate([labels, self.labels])),
            torch.from_numpy(np.concatenate([shares, self.shares])).float(),
        )


def pseudo_files(
    config: Config, experiment: str, data: Dataset, fold: int | None
) -> dict[str, Path]:
    """By the first rounds' names, their logits that label the test images for a fold of
    `experiment`; empty where there is no second round.

    Errors: UserError when a first round is this one, has not finished 05 or kept no networks, or
    was made from other folds, classes, test images or weights than there are now.
    """
    spec = config.train.pseudo
    if experiment in spec.rounds:
        raise UserError(
            f"train.pseudo.experiment={experiment}: a second round needs a config, and with it a "
            "name, of its own"
        )
    if spec.rounds and data.test.empty:
        raise UserError(f"train.pseudo: {data.directory / 'test.csv'} lists no images")
    homes = {name: RUNS / config.dataset / name for name in spec.rounds}
    return {name: _file(home, spec.head, data, fold) for name, home in homes.items()}


def _file(home: Path, head: str, data: Dataset, fold: int | None) -> Path:
    file = f"{head}.npz" if fold is None else network_file(fold_name(fold), head)
    command = f"`python 05_predict.py --config configs/{home.name}.yaml"
    if fold is not None:
        command += f" --set 'predict.keep_networks=[{head}]'"
    path, manifest = home / "predict" / file, home / "predict" / MANIFEST
    found = read_json(manifest, INPUTS | {"outputs": dict}) if manifest.is_file() else None
    if found is None or file not in found["outputs"]:
        raise UserError(
            f"train.pseudo: {path} is missing. Run {command}` first; passes over the images that "
            "were made already are not made again."
        )
    _check_origin(found, home, data, manifest, command)
    return path


def _check_origin(found: dict, home: Path, data: Dataset, manifest: Path, command: str) -> None:
    """Errors: UserError unless 05 was run on the networks, folds, classes and images of now."""
    check_same_folds(found, data, manifest)
    now = {"test.csv": data.directory / "test.csv"}
    for network in found.get("networks", []):
        now[f"{network}/weights"] = home / "stage1" / network / "weights.safetensors"
        origin = home / "stage1" / network / MANIFEST
        classes = read_json(origin, INPUTS)["inputs"].get("classes.csv")
        if classes != sha256(data.directory / "classes.csv"):
            raise UserError(
                f"train.pseudo: {origin}: trained on other classes than "
                f"{data.directory / 'classes.csv'} lists; run the first round again"
            )
    for name, path in now.items():
        if not path.is_file() or found["inputs"].get(name) != sha256(path):
            raise UserError(
                f"train.pseudo: {manifest}: made from another {name} than {path}. Run {command}` "
                "again."
            )


def pseudo_rows(
    config: Config, files: dict[str, Path], data: Dataset, fold: int | None
) -> PseudoRows:
    """What `train.pseudo` takes of the logits in `files`, which `pseudo_files` found.

    Errors: UserError when a file does not hold the test images, was made by another network, or no
    image is confident enough.
    """
    spec, classes = config.train.pseudo, data.classes_of(data.training(fold))
    ids = np.sort(data.test["image_id"].to_numpy(str))
    logits = sum(_logits(path, data, fold) for path in files.values()) / len(files)
    sure = outcomes_of(logits, np.zeros(len(ids), int))
    rows = select(sure.predicted, sure.confidence, ids, spec, classes)
    if not len(rows):
        raise UserError(
            f"train.pseudo: no test image is as confident as min_confidence={spec.min_confidence} "
            f"in {some(map(str, files.values()))}; the surest has {sure.confidence.max():.3f}. "
            "Lower it."
        )
    labels, shares = soft_labels(logits[rows], spec)
    table = pd.DataFrame(
        {
            "image_id": ids[rows].astype(object),
            "label": labels[:, 0],
            "class_id": data.classes["class_id"].to_numpy()[labels[:, 0]],
            "confidence": sure.confidence[rows],
        }
    ).merge(data.test[["image_id", "path"]], on="image_id", validate="1:1")
    return PseudoRows(table, labels, shares, _facts(config, table, data, fold))


def _logits(path: Path, data: Dataset, fold: int | None) -> np.ndarray:
    """Log-probabilities [M, K] of the test images sorted by image_id."""
    found = load_predictions(path, data.num_classes)
    check_same_ids(found.image_id, data.test["image_id"], str(path), "test.csv")
    if fold is not None and (found.fold != fold).any():
        raise UserError(f"{path}: not made by the network of fold {fold}; run 05 again")
    return log_softmax(found.logits, 1)


def select(
    label: np.ndarray, confidence: np.ndarray, image_id: np.ndarray, spec: Pseudo, classes: Classes
) -> np.ndarray:
    """Which of M test images are taken: their rows, rising.

    label, confidence: predicted class and its probability, [M] · classes: with the counts that
    `prior: train` goes by
    """
    group_of = {  # of each class, [K]
        "class": np.arange(classes.num),
        "bin": classes.bins,
        "all": np.zeros(classes.num, int),
    }[spec.per]
    part_of = {
        "balanced": np.ones(classes.num),
        "predicted": np.bincount(label, minlength=classes.num),
        "train": classes.counts,
    }[spec.prior]
    part = np.bincount(group_of, part_of) / part_of.sum()  # w_g
    limit = np.ceil(np.round(spec.share * len(label) * part, 6)).astype(int)  # n_g
    order = np.lexsort((image_id, -confidence))
    group = group_of[label[order]]
    by_group = np.argsort(group, kind="stable")  # each group's images, the surest first
    first = np.searchsorted(group[by_group], group[by_group])
    rank = np.empty(len(group), int)
    rank[by_group] = np.arange(len(group)) - first
    kept = (rank < limit[group]) & (confidence[order] >= spec.min_confidence)
    return np.sort(order[kept])


def soft_labels(logits: np.ndarray, spec: Pseudo) -> tuple[np.ndarray, np.ndarray]:
    """Labels and shares, [n, m] each, the predicted class first; hard: m = 1."""
    count = 1 if spec.labels == "hard" else min(spec.classes, logits.shape[1])
    labels = np.argsort(-logits, 1, kind="stable")[:, :count]
    likely = np.take_along_axis(logits, labels, 1).astype(np.float64)
    return labels, spec.weight * softmax(likely / spec.temperature, 1)


def _facts(config: Config, table: pd.DataFrame, data: Dataset, fold: int | None) -> dict:
    """What the manifest says of the rows; `optimistic`: what flatters the first round's scores
    flatters those of the second."""
    spec = config.train.pseudo
    homes = [RUNS / config.dataset / name for name in spec.rounds]
    reasons = flatters([(home, spec.head) for home in homes])
    bins = data.classes["bin"].to_numpy()[table["label"].to_numpy()]
    return {
        "experiment": " + ".join(spec.rounds),
        "head": spec.head,
        "network": "all" if fold is None else fold_name(fold),
        "images": len(table),
        "of": len(data.test),
        "classes": int(table["label"].nunique()),
        "bins": {name: int(count) for name, count in pd.Series(bins).value_counts().items()},
        "confidence": round(float(table["confidence"].mean()), 4),
        "optimistic": [] if fold is None else reasons,
    }
