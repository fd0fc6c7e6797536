"""birds_lt: every method from the pretrained backbone, compared on held-out training images.

    python benchmarks/birds_methods.py --jobs 2           # every method, two trainings at a time
    python benchmarks/birds_methods.py --methods ce kt    # some of them
    python benchmarks/birds_methods.py --config configs/digits.yaml --folds 0 1 2 3 4
    python benchmarks/birds_methods.py --table            # nothing is trained

A method is what benchmarks/cifar_methods.py says, added to configs/birds_lt_plain.yaml with a
shorter training of smaller images, or to another config as it is. It is scored out of fold, against
cross-entropy on the same images; the test set is not touched. Finished work is skipped and a
stopped run continues. Needs 01 to have run.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/birds_methods.py`

from benchmarks import arguments
from benchmarks.cifar_jobs import choose_tau, fit_heads, without_prior
from benchmarks.cifar_methods import HEADS, METHODS, Method, in_order, row_title
from benchmarks.judged import PLAIN, TOO_SHORT, epochs_for, is_short, judged
from benchmarks.pool import run_all
from benchmarks.results import (
    Scores,
    distinct,
    machine,
    markdown,
    write_section,
)
from src import cli
from src.artifacts.dataset import Dataset, fold_name, load_dataset
from src.artifacts.files import read_json
from src.artifacts.heads import load_head
from src.artifacts.predictions import load_predictions
from src.artifacts.work import MANIFEST, RUNS
from src.config.read import load_config
from src.config.schema import Config
from src.errors import UserError
from src.fusion import STEPS
from src.fusion.step import State
from src.logits import head_logits
from src.metrics import paired_gain, predicted, summary
from src.training.stage1 import stage1

SHORT = {
    "model.image_size": 128,
    "train.epochs": 8,
    "train.eval_every": 8,
    "train.precision": "fp32",
    "train.criterion": {"name": "cross_entropy"},
}
LEAN = {key: SHORT[key] for key in ("train.precision", "train.criterion")}  # other data sets
SMOOTHED = {"train.criterion": {"name": "balanced_softmax", "smoothing": 0.1}}
ALSO = (
    *("multi_task", "cutmix", "seesaw", "lade", "anti_alias", "kt_images", "task_separator"),
    *("ride", "paco"),
)


def birds_methods() -> dict[str, Method]:
    """Those of CIFAR and some more."""
    found = {}
    for method in METHODS.values():
        alone = method.same_as is None and (not method.ablation or method.name in ALSO)
        if alone and method.name != "best":
            found[method.name] = replace(method, ablation=False)
    more = (
        Method("smoothed", "balanced softmax, smoothing 0.1", SMOOTHED, tuple(HEADS)),
        Method("smoothed_mixup", "balanced softmax, smoothing 0.1, mixup",
               SMOOTHED | {"train.mixing": {"mixup": 0.2}}),
    )  # fmt: skip
    return found | {method.name: method for method in more}


BIRDS = birds_methods()


@dataclass(frozen=True)
class Job:
    """A method on some folds. base: the config file · overrides: as in --set"""

    prefix: ClassVar[str] = "compare"  # of its experiments' names
    base: str
    method: str
    folds: tuple[str, ...]
    overrides: tuple[str, ...] = ()

    @property
    def experiment(self) -> str:
        return f"{self.prefix}-{self.method}"

    @property
    def home(self) -> Path:
        return RUNS / load_config(self.base, [*self.overrides]).dataset / self.experiment

    def manifests(self) -> list[Path]:
        return [self.home / "stage1" / fold_name(k) / MANIFEST for k in self.folds]

    def finished(self) -> bool:
        return all(path.is_file() for path in self.manifests())


def scores_of(dataset: str) -> Scores:
    return Scores(
        f"{dataset}-methods",
        ("row", "folds"),
        ("balanced_accuracy", "many", "medium", "few", "gain", "noise"),
    )


def main(argv: list[str] | None = None) -> None:
    """Errors: UserError when a method failed; the others are finished first."""
    parser = arguments.parser(__doc__, "configs/birds_lt_plain.yaml", BIRDS, list(BIRDS))
    parser.add_argument("--folds", nargs="+", default=["0", "1"], metavar="K", help="default: 0 1")
    args = arguments.parse(parser, argv)
    names = dict.fromkeys(["ce", *args.methods])  # the others are compared with it
    jobs = [Job(args.config, name, tuple(args.folds), tuple(args.set)) for name in names]
    failed = {}
    for job, problem in run_all(run_job, [] if args.table else jobs, args.jobs):
        print(f"{job.experiment}: {problem or 'done'}", flush=True)
        if problem:
            failed[BIRDS[job.method].title] = problem
    print(write_table(args.out, jobs[0], failed))
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} methods failed: {'; '.join(failed)}")


def job_config(job: Job) -> Config:
    """Errors: UserError when the product does not take the method's settings."""
    method = BIRDS[job.method]
    heads = [HEADS[name][1] | {"name": name} for name in method.heads]
    shorter = SHORT if load_config(job.base).dataset == "birds_lt" else LEAN
    settings = {**shorter, **method.settings, "stage2": heads}
    items = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load_config(job.base, [*items, *job.overrides])


def too_short(job: Job) -> bool:
    """Whether a job trains for less than its config asks for."""
    return is_short(job_config(job), load_config(job.base, [*job.overrides]))


def run_job(job: Job) -> dict[str, str]:
    """Train the folds and fit the heads, or skip what is there. Returns heads that failed, and why.

    Errors: UserError, and whatever a training can raise.
    """
    config = job_config(job)
    stage1(config, job.experiment, list(job.folds), overwrite=False)
    return fit_heads(config, job.experiment)


def write_table(path: Path, any_job: Job, failed: dict[str, str]) -> str:
    """The section of RESULTS.md, of all that is under runs/ or was kept in scores/ before.

    any_job: whose config, folds and overrides count · failed: title → why it has no figures
    """
    config, asked = job_config(any_job), load_config(any_job.base, [*any_job.overrides])
    dataset, train, folds = config.dataset, config.train, " ".join(any_job.folds)
    data = load_dataset(dataset)
    held_out = sum(len(data.held_out(int(k))) for k in any_job.folds)
    table = scores_of(dataset).keep(measured(any_job, data), path)
    table = table[table["folds"] == folds].set_index("row")
    rows, fair = [], judged_rows(table, too_short(any_job))
    for row in in_order(table.index, BIRDS):
        line = table.loc[row]
        shown = {n: 100 * line[n] for n in ("balanced_accuracy", "many", "medium", "few")}
        gain = "" if row == PLAIN else f"{100 * line['gain']:+.1f} ± {100 * line['noise']:.1f}"
        gain = gain if row in fair else TOO_SHORT
        rows.append({"method": row_title(row, BIRDS)} | shown | {"against CE": gain})
    methods = dict.fromkeys(row.split("/")[0] for row in in_order(table.index, BIRDS))
    lines = [
        f"`python benchmarks/birds_methods.py --config {any_job.base} --folds {folds} --methods "
        f"{' '.join(methods)}` · {' / '.join(sorted(set(table['device'])))} · trained at commit "
        f"{distinct(table['git'])}",
        "",
        f"{config.model.image_size} px, {train.epochs} epochs, folds {folds} held out ({held_out} "
        "images), %. `against CE`: difference in balanced accuracy ± standard error of the paired "
        "bootstrap, to the cross-entropy that was there when the row was measured (which differs "
        "by a point or two between machines). Losses with the class prior in them look a little "
        "better here than on test images: their counts say which class lacks an image in this "
        "fold (src/fusion/logit_adjustment.py)."
        + f" `{TOO_SHORT}` (benchmarks/judged.py): it takes {epochs_for(asked)} epochs "
        f"at {asked.model.image_size} px, and the row is not ahead." * too_short(any_job),
        "",
        markdown(rows, 1),
    ]
    if failed:
        lines += ["", "Not run:", "", *(f"- {title}: {why}" for title, why in failed.items())]
    title = f"{dataset}, method by method"
    return write_section(f"{dataset} methods", title, "\n".join(lines), path)


def judged_rows(table: pd.DataFrame, short: bool) -> list[str]:
    """The rows of a table by row that may be judged. short: whether they were trained so"""
    gains = 100 * table["gain"]
    return [row for row in table.index if judged(row, gains, BIRDS, short)]


def measured(any_job: Job, data: Dataset) -> list[dict]:
    """A line of scores for each row whose folds are all under runs/, compared with `ce`'s."""
    labels = np.concatenate([in_image_order(data.held_out(int(k))) for k in any_job.folds])
    lines, base = [], None
    for name in BIRDS:  # ce is the first
        job = replace(any_job, method=name)
        if not job.finished():
            continue
        git = ", ".join(sorted({read_json(path)["git"] for path in job.manifests()}))
        for row, logits in out_of_fold(job, data).items():
            classes = predicted(logits)
            base = classes if row == "ce" else base
            if base is None:  # ce was not trained here, so there is nothing to compare with
                return []
            gain = paired_gain(base, classes, labels, data.num_classes, "balanced_accuracy")
            lines.append(
                {"row": row, "folds": " ".join(job.folds), "device": machine(), "git": git}
                | summary(logits, labels, data.classes["bin"].to_numpy())
                | dict(zip(("gain", "noise"), gain, strict=True))
            )
    return lines


def in_image_order(table: pd.DataFrame) -> np.ndarray:
    """Labels [N] of images, by image_id."""
    return table.sort_values("image_id")["label"].to_numpy()


def held_out_logits(networks: list[Path], data: Dataset) -> np.ndarray:
    """[N, K] of what networks of stage 1 hold out, by image_id inside a fold."""
    parts = [load_predictions(network / "oof.npz", data.num_classes) for network in networks]
    return np.concatenate([part.take(np.sort(part.image_id)).logits for part in parts])


def out_of_fold(job: Job, data: Dataset) -> dict[str, np.ndarray]:
    """Row → logits [N, K] of the held-out images of every fold, by image_id inside a fold."""
    config, method, parts = job_config(job), BIRDS[job.method], {}

    def add(extra: str, logits: np.ndarray) -> None:
        parts.setdefault(f"{job.method}/{extra}".rstrip("/"), []).append(logits)

    for k in job.folds:
        network = job.home / "stage1" / fold_name(k)
        held_out = load_predictions(network / "oof.npz", data.num_classes)
        held_out = held_out.take(np.sort(held_out.image_id))
        add("", held_out.logits)
        for name in method.heads:
            path = job.home / "stage2" / name / fold_name(k) / "head.safetensors"
            if path.is_file():
                kind, arrays = load_head(path)
                add(name, head_logits(held_out.features, arrays, kind))
        if "tau" in method.posthoc and len(job.folds) > 1:
            other = next(n for n in job.folds if n != k)  # τ is chosen on another fold
            params = choose_tau(config, data, network.parent / fold_name(other))
            own = {"stage1": load_head(network / "head.safetensors")}
            state = State(held_out.logits, held_out.features, "stage1", own)
            add("tau", STEPS["tau_norm"].apply(state, params))
        if "prior" in method.posthoc:
            add("prior", without_prior(held_out.logits, data))
    return {row: np.concatenate(z) for row, z in parts.items() if len(z) == len(job.folds)}


if __name__ == "__main__":
    cli.run(main)
