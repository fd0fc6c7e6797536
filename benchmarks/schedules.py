"""How long to train, and in what batches? For the rules of `auto` (src/config/auto.py).

    python benchmarks/schedules.py                        # what is missing, and the table
    python benchmarks/schedules.py --config configs/digits.yaml
    python benchmarks/schedules.py --table                # nothing is trained

Balanced softmax, the method of least regret, for several numbers of epochs and batch sizes on each
data set; scored out of fold, in pairs of the same images against the first row of the data set; the
test set is not touched. With another batch the learning rate goes along in proportion (Goyal et al.
2017). Finished work is skipped and a stopped run continues. Needs 01 to have run on the configs.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/schedules.py`

from benchmarks.birds_methods import SHORT, held_out_logits, in_image_order
from benchmarks.cifar_methods import BUDGETS
from benchmarks.results import RESULTS, Scores, distinct, machine, markdown, write_section
from src import cli
from src.artifacts.dataset import fold_name, load_dataset
from src.artifacts.files import read_json
from src.artifacts.work import MANIFEST, RUNS
from src.config.read import load_config
from src.config.schema import Config
from src.metrics import paired_gain, predicted, summary
from src.prepare.prepare import prepare
from src.training.stage1 import stage1

METRIC = "balanced_accuracy"
BALANCED = {"train.criterion": {"name": "balanced_softmax"}}
LAST = {"train.eval_every": 1000}  # the last epoch always is evaluated


@dataclass(frozen=True)
class Grid:
    """settings: over the config · folds: held out · tried: epochs and batch; the first is what the
    others are compared with"""

    settings: dict[str, Any]
    folds: tuple[int, ...]
    tried: tuple[tuple[int, int], ...]


GRIDS = {
    "configs/digits.yaml": Grid(
        {"train.precision": "fp32"},
        (0, 1),
        ((40, 64), (20, 64), (80, 64), (160, 64), (40, 32), (40, 128)),
    ),
    "configs/birds_lt_plain.yaml": Grid(
        SHORT, (0, 1), ((12, 32), (6, 32), (24, 32), (12, 16), (12, 64))
    ),
    "configs/cifar10_lt.yaml": Grid(
        {key: value for key, value in BUDGETS["cpu"].settings.items() if key != "train.epochs"},
        (0,),
        ((20, 128), (10, 128), (40, 128), (80, 128), (20, 64)),
    ),
}
SCORES = Scores(
    "schedules",
    ("dataset", "epochs", "batch"),
    ("images", "classes", "steps", "balanced_accuracy", "many", "few", "gain", "noise"),
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--table", action="store_true", help="write the table from what is there")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args(argv)
    if len(args.config) > 1 and not args.table:  # precisions differ, and a process has one
        for path in args.config:
            own = ["--config", path, "--out", str(args.out)]
            subprocess.run([sys.executable, __file__, *own], check=True)
        return
    for path in args.config:
        if not args.table:
            prepare(load_config(path))
            for epochs, batch in GRIDS[path].tried:
                config = settings_of(path, epochs, batch)
                folds = [str(k) for k in GRIDS[path].folds]
                stage1(config, experiment_of(epochs, batch), folds, overwrite=False)
                SCORES.keep(measured(path), args.out)
        write_section("schedules", "How long to train", page(args.out), args.out)
    print(page(args.out))


def experiment_of(epochs: int, batch: int) -> str:
    return f"schedule-e{epochs}-b{batch}"


def settings_of(path: str, epochs: int, batch: int) -> Config:
    base, grid = load_config(path), GRIDS[path]
    usual = grid.tried[0][1]
    values = {**grid.settings, **BALANCED, **LAST, "train.epochs": epochs}
    values |= {"train.batch_size": batch, "train.lr": base.train.lr * batch / usual}
    return load_config(path, [f"{key}={json.dumps(value)}" for key, value in values.items()])


def measured(path: str) -> list[dict]:
    """A line for each that is finished, if the first is."""
    grid, data = GRIDS[path], load_dataset(load_config(path).dataset)
    labels = np.concatenate([in_image_order(data.held_out(k)) for k in grid.folds])
    lines, base = [], None
    for epochs, batch in grid.tried:
        home = RUNS / data.directory.parent.name / experiment_of(epochs, batch) / "stage1"
        networks = [home / fold_name(k) for k in grid.folds]
        if not all((network / MANIFEST).is_file() for network in networks):
            continue
        logits = held_out_logits(networks, data)
        answers = predicted(logits)
        base = answers if (epochs, batch) == grid.tried[0] else base
        if base is None:
            return []
        found = summary(logits, labels, data.classes["bin"].to_numpy())
        bins = data.classes.sort_values("count", ascending=False)["bin"].tolist()
        images = len(data.training(grid.folds[0]))
        gain, noise = paired_gain(base, answers, labels, data.num_classes, METRIC)
        lines.append({
            "dataset": data.directory.parent.name, "epochs": str(epochs), "batch": str(batch),
            "images": images, "classes": data.num_classes, "steps": epochs * (images // batch),
            METRIC: found[METRIC], "many": found[bins[0]], "few": found[bins[-1]],
            "gain": gain, "noise": noise, "device": machine(),
            "git": distinct(read_json(n / MANIFEST)["git"] for n in networks),
        })  # fmt: skip
    return lines


def page(out: Path) -> str:
    table = SCORES.read(out)
    rows = [
        {
            "data": line["dataset"], "images / class": line["images"] / line["classes"],
            "epochs": line["epochs"], "batch": line["batch"], "steps": f"{line['steps']:.0f}",
            METRIC: 100 * line[METRIC], "frequent": 100 * line["many"], "rare": 100 * line["few"],
            "gain": f"{100 * line['gain']:+.1f} ± {100 * line['noise']:.1f}"
            if line["noise"] else "",
        }
        for line in sorted(table.to_dict("records"), key=_order)
    ]  # fmt: skip
    return "\n".join([
        f"`python benchmarks/schedules.py` · {' / '.join(sorted(set(table['device'])))} · trained "
        f"at commit {distinct(table['git'])}",
        "",
        "Balanced softmax, out of fold, %; gain: over the first row of the data set ± standard "
        "error of the paired bootstrap. birds_lt starts from ImageNet's weights (128 px), the "
        "others from random ones.",
        "",
        markdown(rows, 1) if rows else "Nothing is trained yet.",
    ])  # fmt: skip


def _order(line: dict) -> tuple:
    return line["dataset"], line["noise"] > 0, int(line["batch"]), int(line["epochs"])


if __name__ == "__main__":
    cli.run(main)
