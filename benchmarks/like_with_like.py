"""The README's figure: one network against one network on the same images, then what views, folds,
calibration and an ensemble add.

    python benchmarks/like_with_like.py                  # after 01 … 06 of the config
    python benchmarks/like_with_like.py --config configs/birds_lt_recipe.yaml --ensemble mine

All rows are scored on the test images whose solution is known. The first is trained here by the
parts of timm's train script (benchmarks/throughput.py: its dataset, loader, optimizer, EMA, step;
cross-entropy, cosine schedule) on the training images of fold 0, with the backbone, weights, image
size, batch, learning rate and epochs of ours; its logits are kept, so a second run trains nothing.
The second is our network of fold 0, one view. --ensemble names a submission that 06 made of several
experiments, by default the one of most members if there is one. Nothing is chosen by the solution.
"""

import argparse
import sys
import tempfile
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import Accelerator
from matplotlib.axes import Axes
from timm.scheduler import create_scheduler_v2

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/like_with_like.py`

from benchmarks.results import RESULTS, markdown, provenance, write_section
from benchmarks.throughput import TimmLoop, timm_loader
from src import cli
from src.artifacts.dataset import Dataset, fold_name, load_dataset
from src.artifacts.files import read_json, read_table
from src.artifacts.predictions import Predictions, load_predictions
from src.artifacts.trained import trained_config
from src.artifacts.work import RUNS, digest, require
from src.config.read import load_config, with_values
from src.config.schema import Config
from src.config.tree import dump_config
from src.errors import UserError
from src.inference.passes import Pass, network_predictions
from src.inference.views import tta_views
from src.metrics import summary
from src.networks.forward import run_evaluation
from src.networks.weights import load_network
from src.plots.style import BIN_COLORS, legend_above, png
from src.runtime import seed_all, start
from src.training.fold import Fold
from src.training.job import build_trainer

FOLD = 0  # the one network of ours
SETTINGS = ("model", "train", "seed")  # what a network is made of
COLUMNS = ("accuracy", "balanced_accuracy", "many", "medium", "few")
PLAIN = {  # what timm's script knows of a network
    "model.network": "plain", "model.head": "linear", "model.head_init": "random",
    "train.second_sampler": None, "train.criterion": "cross_entropy", "train.sampler": "instance",
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/birds_lt_recipe.yaml", metavar="YAML")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--ensemble", metavar="NAME", help="a submission of several experiments")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args(argv)
    asked = load_config(args.config, args.set)
    home = RUNS / asked.dataset / Path(args.config).stem
    config, data = trained_config(asked, home), load_dataset(asked.dataset)
    truth = solution(config, data)
    data = replace(data, test=data.test[data.test["image_id"].isin(truth.index)])
    rows = [row(name, found, truth, data) for name, found in single(config, data, home)]
    rows += ensemble(home.parent / "submissions", args.ensemble)
    draw(rows, config.dataset, args.out.with_name(f"{config.dataset}.png"))
    body = (
        f"{provenance()}\n\nOn the {len(truth)} test images of the public solution, one network "
        f"against one: both on the training images of fold {FOLD}, {config.train.epochs} epochs, "
        f"{config.model.image_size} px. Each row after them adds something to the one before.\n\n"
        f"{markdown(rows)}"
    )
    title = f"{config.dataset}, like with like"
    print(write_section(f"{config.dataset} like with like", title, body, args.out))


def solution(config: Config, data: Dataset) -> pd.Series:
    """Labels of the test images that the solution knows, by image id. Errors: UserError without."""
    if not config.data.solution:
        raise UserError("data.solution: this figure needs the labels of some test images")
    path = Path(config.data.root) / config.data.solution
    table = read_table(path)
    label_of = dict(zip(data.classes["class_id"], data.classes["label"], strict=True))
    return table.set_index("image_id")["class_id"].map(label_of).astype(int)


def single(config: Config, data: Dataset, home: Path) -> Iterable[tuple[str, Predictions]]:
    """Rows of one experiment: name → predictions of the test images in `data`."""
    accelerator = start(config.train.precision)
    where, stage1 = home / "like_with_like", home / "stage1" / fold_name(FOLD)
    yield "timm's loop, one network", by_timm(config, data, where, accelerator)
    weights = require(stage1 / "weights.safetensors", "02_train_stage1.py")
    network, prep = load_network(weights, data)
    network.to(accelerator.device)
    yield "ours, one network", run_evaluation(network, prep, data.test, config, accelerator)
    if len(tta_views(config.predict.tta)) > 1:
        views = network_predictions(config, data, Pass(stage1), where, accelerator)
        yield "+ views", views
    for name, head in (("+ folds", "stage1"), ("+ heads and calibration", "posthoc")):
        path = require(home / "predict" / f"{head}.npz", "05_predict.py")
        yield name, load_predictions(path, data.num_classes)


def by_timm(config: Config, data: Dataset, where: Path, accelerator: Accelerator) -> Predictions:
    """The logits of a network trained by timm's loop, from disk if there."""
    config = with_values(config, PLAIN, "benchmarks/like_with_like.py")
    made_of = {key: value for key, value in dump_config(config).items() if key in SETTINGS}
    images = {"train": data.training(FOLD)["sha1"].tolist(), "test": data.test["image_id"].tolist()}
    path = where / f"timm-{digest(made_of | images)[:12]}.npz"
    if path.is_file():
        return load_predictions(path, data.num_classes)
    job = Fold(config, data, FOLD, where / "timm", accelerator)
    trainer, _, _ = build_trainer(job)
    loop, train, done = TimmLoop(trainer), config.train, 0
    with tempfile.TemporaryDirectory() as folder:
        loader = timm_loader(trainer, job, Path(folder))
        schedule, epochs = create_scheduler_v2(
            loop.optimizer, sched="cosine", num_epochs=train.epochs, min_lr=train.min_lr,
            warmup_epochs=int(train.warmup_epochs), warmup_lr=train.lr / 100, warmup_prefix=True,
            step_on_epochs=False, updates_per_epoch=len(loader),
        )  # fmt: skip
        for epoch in range(train.epochs):
            seed_all(config.seed, "timm", epoch)
            for images, labels in loader:
                schedule.step_update(done)
                loop.step(images, labels, done)
                done += 1
            cli.say(f"timm's loop, epoch {epoch + 1}/{train.epochs}")
    network = trainer.network if loop.ema is None else loop.ema.module
    found = run_evaluation(network.eval(), trainer.prep, data.test, config, accelerator)
    found.save(path)
    return found


def row(name: str, found: Predictions, truth: pd.Series, data: Dataset) -> dict:
    at = {image_id: row for row, image_id in enumerate(found.image_id)}
    part = found.rows(np.array([at[image_id] for image_id in truth.index]))
    scores = summary(part.logits, truth.to_numpy(), data.classes["bin"].to_numpy())
    return {"test images": name} | {column: scores[column] for column in COLUMNS}


def ensemble(submissions: Path, name: str | None) -> list[dict]:
    """The row of the submission `name`, or of the one of most members, as 06 scored it; none where
    there is none of several experiments. Errors: UserError for a name that is not there."""
    paths = sorted(submissions.glob("*.manifest.json"))
    found = {path.name.removesuffix(".manifest.json"): read_json(path) for path in paths}
    if name is not None and name not in found:
        raise UserError(f"--ensemble {name}: {submissions} has {', '.join(found) or 'nothing'}")
    scored = {n: m for n, m in found.items() if m["metrics"].get("solution")}
    members = {n: len({w.split("/")[0] for w in m["weights"]}) for n, m in scored.items()}
    if name is None:
        name = max((n for n in members if members[n] > 1), key=members.get, default=None)
    if name is None:
        return []
    scores = scored[name]["metrics"]["solution"]
    title = f"+ ensemble of {members[name]} experiments"
    return [{"test images": title} | {column: scores[column] for column in COLUMNS}]


def draw(rows: list[dict], dataset: str, path: Path) -> None:
    """Recall of each bin, a group of bars per row."""

    def panel(ax: Axes) -> None:
        for n, (name, color) in enumerate(BIN_COLORS.items()):
            if name in COLUMNS:
                at = [group + 0.26 * (n - 1) for group in range(len(rows))]
                bars = ax.bar(at, [r[name] for r in rows], 0.24, color=color, label=f"{name}-shot")
                ax.bar_label(bars, fmt="%.2f", fontsize=6, padding=1)
        names = [textwrap.fill(r["test images"], 11) for r in rows]
        ax.set_xticks(range(len(rows)), names, fontsize=7)
        ax.set_ylim(0, 1)
        ax.set_title(f"{dataset}: recall on the same test images")
        legend_above(ax)

    png([panel], path, columns=1)


if __name__ == "__main__":
    cli.run(main)
