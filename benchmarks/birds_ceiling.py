"""birds_lt: what stands between the shipped experiment and a better score.

    python benchmarks/birds_ceiling.py

Needs 02 and 03 of configs/birds_lt.yaml. Nothing is trained: balanced accuracy out of fold by epoch
of the training, by the size of evaluation images, by the images that a class has, and of class
means that know only n images of each frequent class. The test set is not touched.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/birds_ceiling.py`

from benchmarks.results import RESULTS, markdown, provenance, write_section
from src import cli
from src.artifacts.dataset import Dataset, fold_name, load_dataset
from src.artifacts.files import read_table
from src.artifacts.predictions import Predictions, load_predictions
from src.artifacts.trained import trained_config
from src.artifacts.work import RUNS
from src.config.read import load_config
from src.config.schema import Config
from src.data.transforms import EvalTransform
from src.logits import cosine_logits, means_by_class, unit
from src.metrics import predicted, summary
from src.networks.forward import run_network
from src.networks.weights import load_network
from src.rebalance.features import feature_set
from src.runtime import start

SIZES = (1.0, 7 / 6, 4 / 3, 1.5)  # evaluation images over training ones, a side
BANDS = ((3, 4), (5, 7), (8, 12), (13, 18), (19, 30))  # images of a class
SHOTS = (1, 2, 4, 8, 16)
DRAWS = 20  # of the images that class means know
COLUMNS = ("accuracy", "balanced_accuracy", "many", "medium", "few")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/birds_lt.yaml")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args()
    asked = load_config(args.config)
    home = RUNS / asked.dataset / Path(args.config).stem
    config, data = trained_config(asked, home), load_dataset(asked.dataset)
    oof = [load_predictions(home / "stage1" / fold_name(k) / "oof.npz", data.num_classes)
           for k in data.folds]  # fmt: skip
    parts = {
        "By epoch, mean over the folds; the learning rate falls to the end:": by_epoch(home, data),
        "By evaluation: side of the images, and the share of the resized image that is cropped "
        f"from it (trained at {config.model.image_size}, random parts):": by_size(
            config, home, data
        ),
        "By the images that a class has (all folds together):": by_count(oof, data),
        "Class means of the frequent classes know n images each, the other classes' all; recall "
        f"of frequent classes, mean of {DRAWS} draws:": by_shots(config, home, data, oof),
    }
    body = [provenance(), *(f"{title}\n\n{markdown(rows)}" for title, rows in parts.items())]
    title = "birds_lt, where it is lost"
    print(write_section("birds_lt ceiling", title, "\n\n".join(body), args.out))


def by_epoch(home: Path, data: Dataset) -> list[dict]:
    names = ("epoch", *COLUMNS)
    curves = [read_table(home / "stage1" / fold_name(k) / "metrics.csv", names) for k in data.folds]
    seen = [curve.dropna(subset=["balanced_accuracy"]) for curve in curves]
    rows = zip(*(curve[list(names)].to_dict("records") for curve in seen), strict=True)
    means = [{n: float(np.mean([fold[n] for fold in row])) for n in names} for row in rows]
    return [row | {"epoch": int(row["epoch"])} for row in means]


def by_size(config: Config, home: Path, data: Dataset) -> list[dict]:
    accelerator, rows = start(config.train.precision), []
    paths = [home / "stage1" / fold_name(k) / "weights.safetensors" for k in data.folds]
    networks = [load_network(path, data) for path in paths]
    for factor in SIZES:
        for crop in dict.fromkeys((config.model.crop_pct, 1.0)):
            size, found = round(config.model.image_size * factor), []
            for k, (network, prep) in zip(data.folds, networks, strict=True):
                other = replace(prep, size=size, crop_pct=crop)
                network.to(accelerator.device)
                found.append(
                    run_network(network, data.held_out(k), EvalTransform(other), other, accelerator,
                                batch_size=64, workers=config.data.workers)
                )  # fmt: skip
            rows.append({"pixels": size, "cropped": crop} | scores(found, data))
    return rows


def scores(found: list[Predictions], data: Dataset) -> dict[str, float]:
    logits, labels = (np.concatenate([getattr(f, n) for f in found]) for n in ("logits", "label"))
    every = summary(logits, labels, data.classes["bin"].to_numpy())
    return {name: every[name] for name in COLUMNS}


def by_count(oof: list[Predictions], data: Dataset) -> list[dict]:
    """Mean over classes of recall, by images of the class."""
    labels = np.concatenate([f.label for f in oof])
    right = np.concatenate([predicted(f.logits) for f in oof]) == labels
    counts, rows = data.classes["count"].to_numpy(), []
    for low, high in BANDS:
        classes = np.flatnonzero((low <= counts) & (counts <= high))
        recall = [right[labels == c].mean() for c in classes if (labels == c).any()]
        error = float(np.std(recall) / len(recall) ** 0.5)
        rows.append({"images": f"{low} … {high}", "classes": len(recall),
                     "recall": f"{np.mean(recall):.3f} ± {error:.3f}"})  # fmt: skip
    return rows


def by_shots(config: Config, home: Path, data: Dataset, oof: list[Predictions]) -> list[dict]:
    """Recall of the classes in `many` when their means are of n training images."""
    many = np.flatnonzero(data.classes["bin"] == "many")
    accelerator, recalls = start(config.train.precision), {n: [] for n in SHOTS}
    for k, held_out in zip(data.folds, oof, strict=True):
        name = fold_name(k)
        cache = home / "stage2" / "features" / name
        known = feature_set(config, data, home / "stage1" / name, cache, 0, accelerator)
        rows, asked = unit(known.plain), np.isin(held_out.label, many)
        for n in SHOTS:
            for draw in range(DRAWS):
                order = np.random.default_rng((draw, n, k)).permutation(len(rows))
                kept = np.concatenate([first(order, known.labels, c, n if c in many else None)
                                       for c in range(data.num_classes)])  # fmt: skip
                means = means_by_class(rows[kept], known.labels[kept], data.num_classes)
                found = predicted(cosine_logits(held_out.features[asked], means))
                truth = held_out.label[asked]
                recalls[n].append(np.mean([(found == c)[truth == c].mean() for c in set(truth)]))
    return [{"images of each": n, "recall": float(np.mean(r))} for n, r in recalls.items()]


def first(order: np.ndarray, labels: np.ndarray, label: int, count: int | None) -> np.ndarray:
    """The first rows of a class in this order; None: all."""
    return order[labels[order] == label][:count]


if __name__ == "__main__":
    cli.run(main)
