"""birds_lt: fine-grained networks, margins, pooling, policies, label text and warm starts, each
against plain training of as many epochs and of as many seconds.

    python benchmarks/fine_grained.py --jobs 2             # everything, two trainings at a time
    python benchmarks/fine_grained.py --methods mmal gem   # some of them
    python benchmarks/fine_grained.py --methods distill    # needs its teachers, see below
    python benchmarks/fine_grained.py --table              # nothing is trained

A method is a few keys over configs/birds_lt_plain.yaml with the shorter training of smaller images
of benchmarks/birds_methods.py. Seconds are those of training steps, measured in alternation with
plain ones in one process, so that the load of the machine cancels. Scores are out of fold; the test
set is not touched. Finished work is skipped and a stopped run continues. Needs 01 to have run.

Distillation runs where it is named. Its teachers are configs/birds_lt.yaml and
configs/birds_lt_ensemble/plain.yaml, for which 02 to 04 must have finished; neither their training
nor, where views are fixed, their one look at the images is in the seconds.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/fine_grained.py`

from benchmarks import arguments, birds_methods
from benchmarks.birds_methods import SHORT, in_image_order
from benchmarks.cifar_jobs import without_prior
from benchmarks.fine_methods import DISTILLED, EPOCHS, METHODS
from benchmarks.judged import TOO_SHORT, difference, epochs_for, is_short
from benchmarks.label_text import text_settings, write_shuffled
from benchmarks.pool import run_all
from benchmarks.results import Scores, distinct, machine, markdown, write_section
from src import cli
from src.artifacts.dataset import Dataset, load_dataset
from src.artifacts.files import read_json
from src.config.losses import balanced_by
from src.config.read import load_config
from src.config.schema import Config
from src.errors import UserError
from src.language.text import with_text
from src.metrics import paired_gain, predicted, summary
from src.runtime import start
from src.training.fold import Fold
from src.training.job import build_trainer, listening
from src.training.stage1 import stage1
from src.training.teachers import teachers_of

METRIC = "balanced_accuracy"
ROUNDS, STEPS = 4, 2  # alternations of a method with plain training, and optimizer steps in each
SCORES = Scores(
    "birds_lt-fine_grained",
    ("row", "folds"),
    ("balanced_accuracy", "many", "medium", "few", "cost", "seconds", "gain", "noise",
     "equal_epochs", "equal_gain", "equal_noise"),
)  # fmt: skip


class Job(birds_methods.Job):
    """A method on some folds."""

    prefix = "fine"


def main(argv: list[str] | None = None) -> None:
    """Errors: UserError when a method failed; the others are finished first."""
    alone = [name for name in METHODS if name not in DISTILLED]
    parser = arguments.parser(__doc__, "configs/birds_lt_plain.yaml", METHODS, alone)
    parser.add_argument("--folds", nargs="+", default=["0", "1"], metavar="K", help="default: 0 1")
    args = arguments.parse(parser, argv)
    failed = {}
    if not args.table:
        wanted = _with_what_they_need(args.methods)
        jobs = [Job(args.config, name, tuple(args.folds), tuple(args.set)) for name in wanted]
        first = [job for job in jobs if METHODS[job.method].after is None]
        for group in (first, [job for job in jobs if job not in first]):
            for job, problem in run_all(run_job, group, args.jobs):
                print(f"{job.experiment}: {problem or 'done'}", flush=True)
                if problem:
                    failed[METHODS[job.method].title] = problem
    any_job = Job(args.config, "plain", tuple(args.folds), tuple(args.set))
    print(write_table(args.out, any_job, failed))
    if failed:
        raise UserError(f"{len(failed)} methods failed: {'; '.join(failed)}")


def _with_what_they_need(names: list[str]) -> list[str]:
    """Plain first, and before each method the one that it starts from."""
    found = ["plain"]
    for name in names:
        found += [METHODS[name].after or name, name]
    return list(dict.fromkeys(found))


def job_config(job: Job, *, warm: bool = True) -> Config:
    """warm: from the weights that the method starts from. Errors: UserError when the product does
    not take the method's settings."""
    method = METHODS[job.method]
    settings = {**SHORT, "train.epochs": method.epochs, "train.eval_every": method.epochs}
    if method.after is not None and warm:
        source = replace(job, method=method.after)
        settings["model.pretrained"] = f"experiment:{source.experiment}"
    if method.names is not None:
        base = load_config(job.base)
        settings |= text_settings(method.names, base.dataset, base.seed)
    settings |= method.settings | {"stage2": []}
    items = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load_config(job.base, [*items, *job.overrides])


def too_short(base: str, overrides: tuple[str, ...] = ()) -> bool:
    """Whether its methods train for less than the config asks for."""
    job = Job(base, "plain", (), overrides)
    return is_short(job_config(job), load_config(base, [*overrides]))


def run_job(job: Job) -> dict[str, str]:
    """Train the folds, or skip what is there. Errors: UserError, and what a training can raise."""
    config = job_config(job)
    if METHODS[job.method].names == "shuffled":
        write_shuffled(load_dataset(config.dataset), config)
    stage1(config, job.experiment, list(job.folds), overwrite=False)
    return {}


# ---- what a method costs ------------------------------------------------------------------------


def costs(any_job: Job, names: list[str]) -> dict[str, float]:
    """Seconds of a method's training over those of plain training: of one optimizer step, the
    median over rounds in which both take turns, times its epochs over plain ones; without the
    method that it starts from."""
    found: dict[str, float] = {}
    if not names:
        return found
    with tempfile.TemporaryDirectory() as nowhere:
        plain = Steps(any_job, job_config(any_job, warm=False), EPOCHS, Path(nowhere))
        for name in names:
            job, epochs = replace(any_job, method=name), METHODS[name].epochs
            other = Steps(job, job_config(job, warm=False), epochs, Path(nowhere))
            ratios = [other.seconds(n) / plain.seconds(n) for n in range(-1, ROUNDS)]
            found[name] = statistics.median(ratios[1:]) * epochs / EPOCHS
    return found


class Steps:
    """Optimizer steps of a job's first fold, as 02 makes them, and how long they take.

    config: of the job, without weights to start from · epochs: that it trains for
    """

    def __init__(self, job: birds_methods.Job, config: Config, epochs: int, directory: Path):
        data = load_dataset(config.dataset)
        where = directory / job.experiment / "stage1" / "steps"
        accelerator = start(config.train.precision)
        data = with_text(data, config, (config.model, config.train), accelerator)
        fold = Fold(config, data, int(job.folds[0]), where, accelerator)
        if teachers := teachers_of(config, job.experiment, data, fold.fold):
            fold = listening(fold, teachers)
        self.trainer, self.loader, self.draws = build_trainer(fold)
        self.epochs = epochs

    def seconds(self, turn: int) -> float:
        """Of some steps of the epoch at which training is after that share of the turns."""
        epoch = max(0, turn) * self.epochs // ROUNDS
        self.draws.epoch = epoch
        began = time.perf_counter()
        self.trainer.train_epoch(islice(iter(self.loader), STEPS), epoch)
        return time.perf_counter() - began


# ---- the table ----------------------------------------------------------------------------------


def write_table(path: Path, any_job: Job, failed: dict[str, str]) -> str:
    """The section of RESULTS.md, of all that is under runs/ or was kept in scores/ before."""
    config, asked = job_config(any_job), load_config(any_job.base, [*any_job.overrides])
    short = too_short(any_job.base, any_job.overrides)
    data = load_dataset(config.dataset)
    folds = " ".join(any_job.folds)
    held_out = sum(len(data.held_out(int(k))) for k in any_job.folds)
    table = SCORES.keep(measured(any_job, data, path), path)
    table = table[table["folds"] == folds].set_index("row")
    shown = [row for name in METHODS for row in (name, f"{name}/prior") if row in table.index]
    rows = []
    for row in shown:
        line, (name, _, prior) = table.loc[row], row.partition("/")
        scores = {n: 100 * line[n] for n in ("balanced_accuracy", "many", "medium", "few")}
        title = METHODS[name].title + " + logit adjustment" * bool(prior)
        rows.append({"method": title} | scores | {
            "seconds": f"{line['seconds']:.1f} ×",
            "against plain, equal epochs": difference(line["gain"], line["noise"], short)
            if METHODS[name].epochs == EPOCHS else "",
            "equal seconds": difference(line["equal_gain"], line["equal_noise"], short)
            + f" ({line['equal_epochs']:.0f})" * (not np.isnan(line["equal_gain"])),
        })  # fmt: skip
    names = dict.fromkeys(row.split("/")[0] for row in shown)
    lines = [
        f"`python benchmarks/fine_grained.py --config {any_job.base} --folds {folds} --methods "
        f"{' '.join(names)}` · {' / '.join(sorted(set(table['device'])))} · trained at commit "
        f"{distinct(table['git'])}",
        "",
        f"mobilenetv2_100, {config.model.image_size} px, {EPOCHS} epochs where nothing else is "
        f"said, folds {folds} held out ({held_out} images), %. `+ logit adjustment`: after "
        "training, τ = 1, and compared with plain training and the same adjustment. Differences "
        "are in balanced accuracy ± standard error of the paired bootstrap. `seconds`: of all its "
        "training steps over those of plain, measured in turns. `equal seconds`: against the "
        "plain training whose epochs (in brackets) take most nearly as long."
        + f" `{TOO_SHORT}` (benchmarks/judged.py): it takes {epochs_for(asked)} epochs "
        f"at {asked.model.image_size} px, and the row is not ahead." * short,
        "",
        markdown(rows, 1),
    ]
    if failed:
        lines += ["", "Not run:", "", *(f"- {title}: {why}" for title, why in failed.items())]
    title = "birds_lt, fine-grained methods at equal epochs and at equal seconds"
    return write_section("birds_lt fine-grained", title, "\n".join(lines), path)


def measured(any_job: Job, data: Dataset, path: Path) -> list[dict]:
    """A line for each finished method and for what logit adjustment makes of it."""
    jobs = {name: replace(any_job, method=name) for name in METHODS}
    jobs = {name: job for name, job in jobs.items() if job.finished()}
    if "plain" not in jobs:
        return []
    labels = np.concatenate([in_image_order(data.held_out(int(k))) for k in any_job.folds])
    logits = {name: held_out_logits(job, data) for name, job in jobs.items()}
    lengths = {METHODS[n].epochs: n for n in jobs if n.split("_")[0] == "plain"}
    gits = {name: trained_at(job) for name, job in jobs.items()}
    known = SCORES.read(path).set_index("row")
    known = {
        n: known.loc[n, "cost"] for n in jobs if n in known.index and known.loc[n, "git"] == gits[n]
    }
    cost = known | costs(any_job, [name for name in jobs if name not in known])
    lines = []
    for name, job in jobs.items():
        total = cost[name] + cost.get(METHODS[name].after, 0.0)
        epochs = min(lengths, key=lambda n: abs(np.log(n / (EPOCHS * total))))
        config = job_config(job, warm=False)
        balanced = balanced_by(config.model, config.train)  # the prior is taken out once
        for extra in ("",) if balanced else ("", "/prior"):
            z = logits[name][extra]
            facts = {"row": name + extra, "folds": " ".join(job.folds), "device": machine()}
            line = facts | {
                "git": gits[name],
                "cost": cost[name],
                "seconds": total,
                "equal_epochs": epochs,
            }
            line |= summary(z, labels, data.classes["bin"].to_numpy())
            for other, gain in (("plain", "gain"), (lengths[epochs], "equal_gain")):
                if other != name:
                    base = predicted(logits[other][extra])
                    found = paired_gain(base, predicted(z), labels, data.num_classes, METRIC)
                    line |= dict(zip((gain, gain.replace("gain", "noise")), found, strict=True))
            lines.append(line)
    return lines


def trained_at(job: Job) -> str:
    """The commits of its folds."""
    return distinct(read_json(path)["git"] for path in job.manifests())


def held_out_logits(job: Job, data: Dataset) -> dict[str, np.ndarray]:
    """By row, [N, K] of the held-out images of every fold, by image_id inside a fold."""
    logits = birds_methods.held_out_logits([path.parent for path in job.manifests()], data)
    return {"": logits, "/prior": without_prior(logits, data)}


if __name__ == "__main__":
    cli.run(main)
