"""birds_lt: every method from the pretrained backbone, compared on held-out training images.

    python benchmarks/birds_methods.py --jobs 2                   # 40 minutes on two cores
    python benchmarks/birds_methods.py --methods ce kt --folds 0  # some of it
    python benchmarks/birds_methods.py --table                    # nothing is trained

A method is what benchmarks/cifar_methods.py says, added to configs/birds_lt.yaml with a shorter
training of smaller images. It is scored out of fold, against cross-entropy on the same images; the
test set is not touched. Finished work is skipped and a stopped run continues. The table shows all
methods whose folds are there. Needs 01 to have run.
"""

import argparse
import json
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/birds_methods.py`

from benchmarks.cifar_jobs import choose_tau, fit_heads
from benchmarks.cifar_methods import BALANCED, HEADS, METHODS, Method, with_extra
from benchmarks.pool import run_all
from benchmarks.results import markdown, provenance, write_section
from src import cli
from src.artifacts import MANIFEST, RUNS, read_json
from src.config import load_config
from src.errors import UserError
from src.fusion import STEPS
from src.fusion.step import State
from src.logits import head_logits
from src.metrics import predicted, summary
from src.schema import Config
from src.tables import Dataset, load_dataset, load_head, load_predictions
from src.training.stage1 import stage1

CONFIG = "configs/birds_lt.yaml"
SHORT = {
    "model.image_size": 128,
    "train.epochs": 8,
    "train.eval_every": 8,
    "train.precision": "fp32",
    "train.criterion": {"name": "cross_entropy"},
}
SMOOTHED = {"train.criterion": {"name": "balanced_softmax", "smoothing": 0.1}}
ALSO = ("multi_task", "seesaw", "task_separator", "ride", "paco", "anti_alias")  # of the ablations
DRAWS = 2000  # of the bootstrap


def birds_methods() -> dict[str, Method]:
    """Those of CIFAR without what belongs to its schedule, and some more."""
    found = {}
    for method in METHODS.values():
        alone = method.same_as is None and (not method.ablation or method.name in ALSO)
        if alone and method.name != "best":
            kept = {k: v for k, v in method.settings.items() if k != "train.milestones"}
            found[method.name] = Method(
                method.name, method.title, kept, method.heads, method.posthoc
            )
    more = (
        Method("smoothed", "balanced softmax, smoothing 0.1", SMOOTHED, tuple(HEADS)),
        Method("longer", "cross-entropy, twice the epochs", {"train.epochs": 16}, (), ("prior",)),
        Method("balanced_longer", "balanced softmax, twice the epochs",
               BALANCED | {"train.epochs": 16}),
        Method("smoothed_mixup", "balanced softmax, smoothing 0.1, mixup",
               SMOOTHED | {"train.mixing": {"mixup": 0.2}}),
    )  # fmt: skip
    return found | {method.name: method for method in more}


BIRDS = birds_methods()


@dataclass(frozen=True)
class Job:
    method: str
    folds: tuple[str, ...]
    overrides: tuple[str, ...] = ()

    @property
    def experiment(self) -> str:
        return f"compare-{self.method}"


def main(argv: list[str] | None = None) -> None:
    """Errors: UserError when a method failed; the others are finished first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--methods", nargs="+", choices=list(BIRDS), default=list(BIRDS), metavar="M",
        help=f"default: all; known: {', '.join(BIRDS)}")  # fmt: skip
    add("--folds", nargs="+", default=["0", "1"], metavar="K", help="default: 0 1")
    add("--jobs", type=int, default=1, metavar="N", help="trainings at a time (default: 1)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the config")
    add("--table", action="store_true", help="write the table from what is there")
    args = parser.parse_args(argv)
    jobs = [Job(name, tuple(args.folds), tuple(args.set)) for name in args.methods]
    failed = {}
    for job, problem in run_all(run_job, [] if args.table else jobs, args.jobs):
        print(f"{job.experiment}: {problem or 'done'}", flush=True)
        if problem:
            failed[BIRDS[job.method].title] = problem
    every = [Job(name, tuple(args.folds), tuple(args.set)) for name in BIRDS]
    print(write_section("birds_lt methods", "birds_lt, method by method", body(every, failed)))
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} methods failed: {'; '.join(failed)}")


def job_config(job: Job) -> Config:
    """Errors: UserError when the product does not take the method's settings."""
    method = BIRDS[job.method]
    heads = [HEADS[name][1] | {"name": name} for name in method.heads]
    settings = {**SHORT, **method.settings, "stage2": heads}
    items = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load_config(CONFIG, [*items, *job.overrides])


def run_job(job: Job) -> str:
    """Train the folds and fit the heads, or skip what is there. Returns "" or why it failed."""
    try:
        config = job_config(job)
        stage1(config, job.experiment, list(job.folds), overwrite=False)
        failed = fit_heads(config, job.experiment)
    except UserError as error:
        return " ".join(str(error).split())
    except Exception as error:  # one method must not end a night of training
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return "; ".join(f"{name}: {why}" for name, why in failed.items())


def body(jobs: list[Job], failed: dict[str, str]) -> str:
    config = job_config(jobs[0])
    data = load_dataset(config.dataset)
    found: dict[str, np.ndarray] = {}
    commits = set()
    for job in jobs:
        manifests = [home(job) / "stage1" / f"fold{k}" / MANIFEST for k in job.folds]
        if all(path.is_file() for path in manifests):
            found |= out_of_fold(job, data)
            commits |= {read_json(path)["git"] for path in manifests}
    folds = [int(k) for k in jobs[0].folds]
    labels = np.concatenate([data.held_out(k)["label"].to_numpy() for k in folds])
    bins = data.classes["bin"].to_numpy()
    base = found.get(BIRDS["ce"].title)
    rows = []
    for title, logits in found.items():
        scores = summary(logits, labels, bins)
        shown = {n: 100 * scores[n] for n in ("balanced_accuracy", "many", "medium", "few")}
        rows.append({"method": title} | shown | {"against CE": against(base, logits, labels)})
    train = config.train
    lines = [
        provenance(),
        "",
        f"`{CONFIG}` at {config.model.image_size} px, {train.epochs} epochs, folds "
        f"{', '.join(map(str, folds))} held out ({len(labels)} images), %; trained at commit "
        f"{', '.join(sorted(commits))}. "
        "`against CE`: difference in balanced accuracy ± standard error of the paired bootstrap. "
        "Losses with the class prior in them look a little better here than on test images: their "
        "counts say which class lacks an image in this fold (src/fusion/logit_adjustment.py).",
        "",
        markdown(rows, 1),
    ]
    if failed:
        lines += ["", "Not run:", "", *(f"- {title}: {why}" for title, why in failed.items())]
    return "\n".join(lines)


def home(job: Job) -> Path:
    return RUNS / job_config(job).dataset / job.experiment


def out_of_fold(job: Job, data: Dataset) -> dict[str, np.ndarray]:
    """Title → logits [N, K] of the held-out images of every fold, by image_id inside a fold."""
    config, method, parts = job_config(job), BIRDS[job.method], {}

    def add(extra: str, logits: np.ndarray) -> None:
        parts.setdefault(with_extra(method, extra), []).append(logits)

    for k in job.folds:
        network = home(job) / "stage1" / f"fold{k}"
        held_out = load_predictions(network / "oof.npz", data.num_classes)
        held_out = held_out.take(np.sort(held_out.image_id))
        add("", held_out.logits)
        for name in method.heads:
            path = home(job) / "stage2" / name / f"fold{k}" / "head.safetensors"
            if path.is_file():
                kind, arrays = load_head(path)
                add(name, head_logits(held_out.features, arrays, kind))
        if "tau" in method.posthoc and len(job.folds) > 1:
            other = next(n for n in job.folds if n != k)  # τ is chosen on another fold
            params = choose_tau(config, data, network.parent / f"fold{other}")
            own = {"stage1": load_head(network / "head.safetensors")}
            state = State(held_out.logits, held_out.features, "stage1", own)
            add("tau", STEPS["tau_norm"].apply(state, params))
        if "prior" in method.posthoc:
            add("prior", held_out.logits - np.log(data.counts(data.images)))
    return {title: np.concatenate(z) for title, z in parts.items() if len(z) == len(job.folds)}


def against(base: np.ndarray | None, logits: np.ndarray, labels: np.ndarray) -> str:
    """Difference in balanced accuracy, in points, ± its standard error over resampled images."""
    if base is None or base is logits:
        return ""
    gain = (predicted(logits) == labels).astype(float) - (predicted(base) == labels)
    rng, draws = np.random.default_rng(0), []
    for _ in range(DRAWS):
        rows = rng.integers(len(labels), size=len(labels))
        draws.append(_by_class(gain[rows], labels[rows]))
    return f"{100 * _by_class(gain, labels):+.1f} ± {100 * np.std(draws):.1f}"


def _by_class(values: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes present of the mean of their rows."""
    counts = np.bincount(labels)
    return (np.bincount(labels, values)[counts > 0] / counts[counts > 0]).mean()


if __name__ == "__main__":
    cli.run(main)
