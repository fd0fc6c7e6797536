"""The semantic CLS token out of fold: does it help, and do the names?

    python benchmarks/cifar_lt.py --budget cpu --methods transfg semantic_cls semantic_cls_shuffled
                                     semantic_cls_strong semantic_cls_strong_shuffled   # trains
    python benchmarks/semantic_cls.py                                                   # does not

Scores on fold 0, which none of the networks saw, after equal epochs, against TransFG without the
token, in pairs of the same images. The test accuracies stand in the table of cifar_lt.py.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/semantic_cls.py`

from benchmarks.birds_methods import held_out_logits, in_image_order
from benchmarks.cifar_jobs import HELD_OUT, Job, job_config, without_prior
from benchmarks.cifar_methods import METHODS
from benchmarks.judged import TOO_SHORT, difference, epochs_for, is_short
from benchmarks.results import RESULTS, distinct, machine, markdown, write_section
from src import cli
from src.artifacts.dataset import Dataset, fold_name, load_dataset
from src.artifacts.files import read_json
from src.artifacts.work import MANIFEST, RUNS
from src.config.read import load_config
from src.errors import UserError
from src.metrics import paired_gain, predicted, summary

BASE = "transfg"
ROWS = (BASE, "semantic_cls", "semantic_cls_shuffled", "semantic_cls_strong",
        "semantic_cls_strong_shuffled")  # fmt: skip
METRIC = "balanced_accuracy"


def main(argv: list[str] | None = None) -> None:
    """Errors: UserError when TransFG has not been trained."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/cifar10_lt.yaml", metavar="YAML")
    parser.add_argument("--split", default="exp100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args(argv)
    jobs = [Job(args.config, "cpu", name, args.split, args.seed) for name in ROWS]
    config, asked = job_config(jobs[0]), load_config(args.config)
    data, short = load_dataset(config.dataset), is_short(config, asked)
    rows, commits = table(jobs, data, short)
    if not rows:
        raise UserError(f"{jobs[0].experiment} is not trained; the docstring names the command")
    body = "\n".join([
        f"`python benchmarks/semantic_cls.py --split {args.split} --seed {args.seed}` · {machine()}"
        f" · trained at commit {distinct(commits)}",
        "",
        f"{data.directory.parent.name}, fold {HELD_OUT} ({len(data.held_out(int(HELD_OUT)))} "
        f"images), a ViT from scratch, {config.train.epochs} epochs each, %; gains are in balanced "
        "accuracy over TransFG without the token, ± standard error of the paired bootstrap, as "
        "trained and with logit adjustment (τ = 1) of both."
        + f" `{TOO_SHORT}` (benchmarks/judged.py): it takes {epochs_for(asked)} "
        "epochs, and the row is not ahead." * short,
        "",
        markdown(rows, 1),
    ])  # fmt: skip
    print(write_section("semantic cls", "The semantic CLS token, out of fold", body, args.out))


def table(jobs: list[Job], data: Dataset, short: bool) -> tuple[list[dict], list[str]]:
    """A row per network that is there; the commits. short: whether they were trained so"""
    labels = in_image_order(data.held_out(int(HELD_OUT)))
    names = ("accuracy", METRIC, *dict.fromkeys(data.classes["bin"]))
    base, rows, commits = None, [], []
    for job in jobs:
        network = RUNS / data.directory.parent.name / job.experiment / "stage1"
        network /= fold_name(HELD_OUT)
        if not (network / MANIFEST).is_file():
            continue
        logits = held_out_logits([network], data)
        answers = [predicted(z) for z in (logits, without_prior(logits, data))]
        base = base or answers
        found = summary(logits, labels, data.classes["bin"].to_numpy())
        row = {"method": METHODS[job.method].title}
        row |= {n: 100 * found[n] for n in names}
        for title, mine, its in zip(("gain", "gain, adjusted"), answers, base, strict=True):
            gain, noise = paired_gain(its, mine, labels, data.num_classes, METRIC)
            row[title] = "" if job.method == BASE else difference(gain, noise, short)
        rows.append(row)
        commits.append(read_json(network / MANIFEST)["git"])
    return rows, commits


if __name__ == "__main__":
    cli.run(main)
