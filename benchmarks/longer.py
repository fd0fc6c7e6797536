"""birds_lt: methods with time: from the weights of a whole plain training, at its full size.

    python benchmarks/longer.py --jobs 2               # plain training first, then every method
    python benchmarks/longer.py --methods mixup kt     # some of them
    python benchmarks/longer.py --table                # nothing is trained

configs/birds_lt_plain.yaml is trained as it is. A method of benchmarks/birds_methods.py then goes
on from the network of the same fold: class means, experts and branches begin where features mean
something. It is compared with plain training that goes on for as many epochs, and with one
that takes as many seconds, within a tenth; steps are measured in turns. Scores are out of fold;
the test set is not touched. Finished work is skipped and a stopped run continues. Needs 01 to have
run.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/longer.py`

from benchmarks import arguments, birds_methods
from benchmarks.birds_methods import BIRDS, LEAN, held_out_logits, in_image_order
from benchmarks.cifar_jobs import without_prior
from benchmarks.fine_grained import METRIC, ROUNDS, Steps
from benchmarks.pool import run_all
from benchmarks.results import Scores, distinct, machine, markdown, write_section
from src import cli
from src.artifacts.dataset import Dataset, load_dataset
from src.artifacts.files import read_json
from src.config.losses import balanced_by
from src.config.read import load_config
from src.config.schema import Config
from src.errors import UserError
from src.metrics import paired_gain, predicted, summary
from src.training.stage1 import stage1

MORE = 6  # epochs of a method
ALIKE = 1.1  # times as long is as long
FIRST, CE, TWICE = "plain", "ce", "ce_twice"  # the start; it goes on for MORE epochs, and for twice
PLAIN = {
    FIRST: "plain training, from which the others start",
    CE: f"cross-entropy, {MORE} epochs more",
    TWICE: f"cross-entropy, {2 * MORE} epochs more",
}
TELLING = (
    *("balanced_softmax", "ldam_drw", "mixup", "kt", "bbn", "task_separator", "paco", "ride"),
    *("multi_task", "manifold", "seesaw"),
)
OTHER_MACHINE = (
    " Each method is compared with what its own machine made of plain training; shown is that of "
    "one of them."
)
SHOWN = (METRIC, "many", "medium", "few")


class Job(birds_methods.Job):
    """A method, or one of PLAIN, on some folds."""

    prefix = "longer"


def epochs_of(job: Job) -> int:
    """Of its own training, without the start."""
    if job.method == FIRST:
        return load_config(job.base, [*job.overrides]).train.epochs
    return 2 * MORE if job.method == TWICE else MORE


def job_config(job: Job, *, warm: bool = True) -> Config:
    """warm: from the weights of the start. Errors: UserError when the product does not take the
    method's settings."""
    settings = dict(LEAN)
    if job.method != FIRST:
        settings |= {"train.epochs": epochs_of(job), "train.eval_every": epochs_of(job)}
    if job.method != FIRST and warm:
        settings["model.pretrained"] = f"experiment:{replace(job, method=FIRST).experiment}"
    if job.method not in PLAIN:
        settings |= BIRDS[job.method].settings
    settings["stage2"] = []
    items = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load_config(job.base, [*items, *job.overrides])


def run_job(job: Job) -> dict[str, str]:
    """Train the folds, or skip what is there. Errors: UserError, and what a training can raise."""
    stage1(job_config(job), job.experiment, list(job.folds), overwrite=False)
    return {}


def main(argv: list[str] | None = None) -> None:
    """Errors: UserError when a method failed; the others are finished first."""
    known = [name for name in BIRDS if name != CE]
    parser = arguments.parser(__doc__, "configs/birds_lt_plain.yaml", known, list(TELLING))
    parser.add_argument("--folds", nargs="+", default=["0", "1"], metavar="K", help="default: 0 1")
    args = arguments.parse(parser, argv)
    start = Job(args.config, FIRST, tuple(args.folds), tuple(args.set))
    alone = [replace(start, folds=(fold,)) for fold in start.folds]  # both cores have work at once
    others = [replace(start, method=name) for name in (CE, *args.methods, TWICE)]
    failed = {}
    for group in () if args.table else (alone, others):
        for job, problem in run_all(run_job, group, args.jobs):
            print(f"{job.experiment}: {problem or 'done'}", flush=True)
            if problem:
                failed[title(job.method)] = problem
    print(write_table(args.out, start, failed))
    if failed:
        raise UserError(f"{len(failed)} methods failed: {'; '.join(failed)}")


def title(row: str) -> str:
    name, _, prior = row.partition("/")
    known = PLAIN[name] if name in PLAIN else BIRDS[name].title
    return known + " + logit adjustment" * bool(prior)


def scores_of(dataset: str) -> Scores:
    return Scores(
        f"{dataset}-longer",
        ("row", "folds"),
        (*SHOWN, "cost", "seconds", "gain", "noise", "equal_gain", "equal_noise"),
        ("equal", "device", "git"),
    )


def costs(start: Job, names: list[str]) -> dict[str, float]:
    """Seconds of a method's step over those of cross-entropy: medians over rounds in turns."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as nowhere:
        plain = Steps(replace(start, method=CE), job_config(start), MORE, Path(nowhere))
        for name in names:
            job = replace(start, method=name)
            other = Steps(job, job_config(job, warm=False), MORE, Path(nowhere))
            ratios = [other.seconds(n) / plain.seconds(n) for n in range(-1, ROUNDS)]
            found[name] = statistics.median(ratios[1:])
    return found


def measured(start: Job, data: Dataset, path: Path) -> list[dict]:
    """A line for each finished method, and for what logit adjustment makes of it where the class
    prior is still in it."""
    jobs = {name: replace(start, method=name) for name in (*PLAIN, *BIRDS)}
    jobs = {name: job for name, job in jobs.items() if job.finished()}
    if not {FIRST, CE} <= jobs.keys():
        return []
    labels = np.concatenate([in_image_order(data.held_out(int(k))) for k in start.folds])
    git = {
        name: distinct(read_json(p)["git"] for p in job.manifests()) for name, job in jobs.items()
    }
    kept = scores_of(load_config(start.base).dataset).read(path)
    kept = kept[kept["folds"] == " ".join(start.folds)].set_index("row")
    step = {
        n: kept.loc[n, "cost"] for n in jobs if n in kept.index and kept.loc[n, "git"] == git[n]
    }
    step |= dict.fromkeys(PLAIN, 1.0)
    step |= costs(start, [name for name in jobs if name not in step])
    before = epochs_of(start)
    seconds = {n: before + (n != FIRST) * epochs_of(job) * step[n] for n, job in jobs.items()}
    z = {n: held_out_logits([p.parent for p in job.manifests()], data) for n, job in jobs.items()}
    lines = []
    for name, job in jobs.items():
        apart = {n: abs(np.log(seconds[n] / seconds[name])) for n in PLAIN.keys() & jobs.keys()}
        lasting = min(apart, key=apart.get)
        lasting = lasting if apart[lasting] < np.log(ALIKE) else ""
        config = job_config(job, warm=False)
        both = ("",) if balanced_by(config.model, config.train) else ("", "/prior")
        for extra in both:
            own, *bases = (
                without_prior(z[n], data) if extra else z[n] for n in (name, CE, lasting) if n
            )
            line = {"row": name + extra, "folds": " ".join(start.folds), "device": machine()}
            line |= {"git": git[name], "cost": step[name], "equal": lasting}
            line |= {"seconds": seconds[name] / seconds[CE]}
            line |= summary(own, labels, data.classes["bin"].to_numpy())
            for base, keys in zip(bases, ("gain noise", "equal_gain equal_noise"), strict=False):
                if name not in PLAIN:
                    gain = paired_gain(
                        predicted(base), predicted(own), labels, data.num_classes, METRIC
                    )
                    line |= dict(zip(keys.split(), gain, strict=True))
            lines.append(line)
    return lines


def write_table(path: Path, start: Job, failed: dict[str, str]) -> str:
    """The section of RESULTS.md, of all that is under runs/ or was kept in scores/ before."""
    config = job_config(start)
    data, folds = load_dataset(config.dataset), " ".join(start.folds)
    held_out = sum(len(data.held_out(int(k))) for k in start.folds)
    table = scores_of(config.dataset).keep(measured(start, data, path), path)
    table = table[table["folds"] == folds].set_index("row")
    every = dict.fromkeys((*PLAIN, *BIRDS))  # cross-entropy is in both
    order = [row for name in every for row in (name, f"{name}/prior")]
    rows = []
    for row in (row for row in order if row in table.index):
        line = table.loc[row]
        lasting = title(line["equal"]).split(", ")[-1] if line["equal"] else ""
        rows.append({"method": title(row)} | {n: 100 * line[n] for n in SHOWN} | {
            "seconds": f"{line['seconds']:.2f} ×",
            "equal epochs": points(line["gain"], line["noise"]),
            "equal seconds": points(line["equal_gain"], line["equal_noise"], f" ({lasting})"),
        })  # fmt: skip
    names = dict.fromkeys(row.split("/")[0] for row in table.index)
    lines = [
        f"`python benchmarks/longer.py --config {start.base} --folds {folds} --methods "
        f"{' '.join(name for name in BIRDS if name in names and name not in PLAIN)}` · "
        f"{' / '.join(sorted(set(table['device'])))} · trained at commit {distinct(table['git'])}",
        "",
        f"{config.model.image_size} px, {epochs_of(start)} epochs of plain training, then {MORE} "
        f"of the method from its weights; folds {folds} held out ({held_out} images), one seed, %. "
        "`+ logit adjustment`: after training, τ = 1, and compared with plain training and the "
        "same adjustment. `seconds`: of all training steps, the start's too, over those of "
        f"{title(CE)}, steps measured in turns. Differences are in balanced accuracy ± standard "
        "error of the paired bootstrap: to plain training that goes on for as many epochs, and to "
        "the one (in brackets) that takes as long, where one does within a tenth."
        + OTHER_MACHINE
        * (table["device"].nunique() > 1),
        "",
        markdown(rows, 1),
    ]
    if failed:
        lines += ["", "Not run:", "", *(f"- {name}: {why}" for name, why in failed.items())]
    body = "\n".join(lines)
    return write_section(
        f"{config.dataset} longer", f"{config.dataset}, methods with time", body, path
    )


def points(gain: float, noise: float, more: str = "") -> str:
    """A cell, of shares; empty where there is nothing to compare with."""
    return "" if gain != gain else f"{100 * gain:+.1f} ± {100 * noise:.1f}{more}"


if __name__ == "__main__":
    cli.run(main)
