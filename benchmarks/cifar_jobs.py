"""One network of benchmarks/cifar_lt.py: the product's own stages, then the test set's score.

Training uses every image (02's `full`), as the published figures do, or all but fold 0 where the
budget has no time for two trainings. What is chosen (τ, the epoch) is chosen on fold 0, by a
network that never saw it. The scores are written to <experiment>/score/ with a manifest, so that a
finished job is skipped.
"""

import json
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from benchmarks.cifar_methods import BUDGETS, HEADS, METHODS
from benchmarks.label_text import text_settings, write_shuffled
from benchmarks.results import machine
from src.artifacts.dataset import FULL, Dataset, fold_name, load_dataset
from src.artifacts.files import read_json, write_json
from src.artifacts.heads import load_head
from src.artifacts.predictions import load_predictions
from src.artifacts.work import MANIFEST, RUNS, Work
from src.config.posthoc import TauNorm
from src.config.read import load_config
from src.config.schema import Config
from src.config.tree import dump_config
from src.data.cache import keep_images
from src.errors import UserError
from src.fusion import STEPS
from src.fusion.step import State
from src.inference.passes import Pass, network_predictions
from src.logits import head_logits
from src.metrics import balanced_accuracy
from src.rebalance.stage2 import stage2
from src.runtime import start
from src.submission.solution import find_solution, score_solution
from src.training.checkpoint import NAME as CHECKPOINT
from src.training.checkpoint import load_checkpoint, save_checkpoint
from src.training.stage1 import stage1

SCORES = "scores.json"
HELD_OUT = "0"  # the fold on which τ and the epoch are chosen
EVALUATE_EVERY = 2  # epochs, where the epoch is chosen


@dataclass(frozen=True)
class Job:
    """A method on a split with a seed. base: the config file · split: exp100, step100, … ·
    overrides: as in --set · selected: train without fold 0 and keep the epoch that is best on it,
    instead of the last one of all images."""

    base: str
    budget: str
    method: str
    split: str
    seed: int
    overrides: tuple[str, ...] = ()
    selected: bool = False

    @property
    def experiment(self) -> str:
        return f"{self.budget}-{self.method}-s{self.seed}" + ("-selected" * self.selected)

    @property
    def folds(self) -> list[str]:
        if self.selected or BUDGETS[self.budget].held_out:
            return [HELD_OUT]
        return [FULL, HELD_OUT] if "tau" in self.posthoc else [FULL]

    @property
    def posthoc(self) -> list[str]:
        """Names in POSTHOC: those of the method that the budget has time for."""
        found = () if self.selected else METHODS[self.method].posthoc
        return [name for name in found if name in BUDGETS[self.budget].posthoc]

    @property
    def network(self) -> str:
        """Directory in stage1/ of the network whose test score is reported."""
        return FULL if FULL in self.folds else fold_name(HELD_OUT)


def job_config(job: Job) -> Config:
    """Errors: UserError when the product does not take the method's settings."""
    method, budget = METHODS[job.method], BUDGETS[job.budget]
    dataset = load_config(job.base).dataset
    profile = job.split.rstrip("0123456789.")
    heads = [HEADS[name][1] | {"name": name} for name in method.heads]
    named = f"{dataset}_{job.split}"
    settings = {
        **budget.settings,
        **(budget.search if method.search else {}),
        **method.settings,
        **budget.adapted.get(method.name, {}),
        "data.name": named,
        **(text_settings(method.names, named, job.seed) if method.names else {}),
        "longtail.profile": profile,
        "longtail.ratio": float(job.split.removeprefix(profile)),
        "stage2": [] if job.selected else heads,
        "seed": job.seed,
        **({"train.select": "best", "train.eval_every": EVALUATE_EVERY} if job.selected else {}),
    }
    items = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load_config(job.base, [*items, *job.overrides])


def run_job(job: Job) -> dict[str, str]:
    """Train, fit the heads and score, or skip what is there. Returns heads that failed, and why.

    Errors: UserError, and whatever a training can raise.
    """
    if BUDGETS[job.budget].held_out and not job.selected and not METHODS[job.method].search:
        chosen = replace(job, selected=True)
        run_job(chosen)
        hand_over(chosen, job)
    config = job_config(job)
    data = load_dataset(config.dataset)
    if config.data.cache != "none":  # one process runs many jobs
        keep_images([*data.images["path"], *data.test["path"]], config.data.workers)
    if METHODS[job.method].names == "shuffled":
        write_shuffled(data, config)
    if METHODS[job.method].search:
        from src.training.trials import search  # Optuna is needed by these methods alone

        search(config, job.experiment, overwrite=False)
    stage1(config, job.experiment, job.folds, overwrite=False)
    failed = fit_heads(config, job.experiment)
    score(job, config, data, failed)
    return failed


def hand_over(chosen: Job, job: Job) -> None:
    """Let `job`, which keeps the last epoch, go on from the last checkpoint of `chosen`, which was
    trained with the same settings and keeps the best: nothing is left to train."""
    old, new = (network_directory(each) for each in (chosen, job))
    if (new / CHECKPOINT).is_file():
        return
    state = load_checkpoint(old) | {"best": None}
    state["settings"]["train"]["select"] = "last"
    new.mkdir(parents=True, exist_ok=True)
    save_checkpoint(new, state)


def network_directory(job: Job) -> Path:
    return RUNS / job_config(job).dataset / job.experiment / "stage1" / job.network


def fit_heads(config: Config, experiment: str) -> dict[str, str]:
    """Stage 2, one head at a time, so that one that fails costs no other; name → why it failed."""
    failed = {}
    for spec in config.stage2:
        try:
            alone = config.model_copy(update={"stage2": (spec,)})
            stage2(alone, experiment, overwrite=False)
        except UserError as error:
            failed[spec.name] = str(error)
    return failed


def score(job: Job, config: Config, data: Dataset, without: Container[str] = ()) -> dict:
    """Write <experiment>/score/scores.json: rows of metrics on the test set, by method/extra.

    without: heads that there are not. Errors: UserError when the test set has no solution.
    """
    home = RUNS / config.dataset / job.experiment
    network = network_directory(job)
    solution = find_solution(data, None)
    if solution is None:
        raise UserError(f"{data.directory}: the test images have no labels; nothing to score")
    files = {"weights": network / "weights.safetensors", "solution": solution}
    if HELD_OUT in job.folds:
        files["held_out"] = home / "stage1" / fold_name(HELD_OUT) / "oof.npz"
    names = [spec.name for spec in config.stage2 if spec.name not in without]
    heads = {n: home / "stage2" / n / network.name / "head.safetensors" for n in names}
    settings = {"posthoc": job.posthoc, "predict": dump_config(config.predict)}
    step = Work(home / "score", settings, files | heads)
    if step.finished():
        return read_json(step.directory / SCORES)
    accelerator = start(config.train.precision)
    rows, chosen = test_logits(
        config, data, network, heads, job.posthoc, step.directory, accelerator
    )
    ids = np.sort(data.test["image_id"].to_numpy(str))
    trained = read_json(network / MANIFEST)
    tree = {
        "rows": {
            f"{job.method}/{name}".rstrip("/"): score_solution(logits, ids, data, solution)[0]
            for name, logits in rows.items()
        },
        "chosen": chosen | (trained.get("searched") or {}),
        "split": job.split,
        "seed": job.seed,
        "selected": job.selected,
        "device": machine(),
    }
    write_json(step.directory / SCORES, tree)
    step.finish([SCORES], tree["rows"])
    return tree


def test_logits(
    config: Config,
    data: Dataset,
    network: Path,
    heads: dict[str, Path],
    posthoc: list[str],
    directory: Path,
    accelerator: Accelerator,
) -> tuple[dict[str, np.ndarray], dict]:
    """Logits [M, K] by row ("" is the network's own), sorted by image_id; and what was chosen."""
    found = network_predictions(config, data, Pass(network), directory, accelerator)
    found = found.take(np.sort(found.image_id))
    rows, chosen = {"": found.logits}, {}
    for name, path in heads.items():
        kind, arrays = load_head(path)
        rows[name] = head_logits(found.features, arrays, kind)
    if "tau" in posthoc:
        own = {"stage1": load_head(network / "head.safetensors")}
        chosen = choose_tau(config, data, network.parent / fold_name(HELD_OUT))
        state = State(found.logits, found.features, "stage1", own)
        rows["tau"] = STEPS["tau_norm"].apply(state, chosen)
    if "prior" in posthoc:
        rows["prior"] = without_prior(found.logits, data)
    return rows, chosen


def without_prior(logits: np.ndarray, data: Dataset) -> np.ndarray:
    """Logit adjustment with τ = 1, by the counts of all training images."""
    state = State(logits, None, "stage1", counts=data.counts(data.images))
    return STEPS["logit_adjustment"].apply(state, {"tau": 1.0})


def choose_tau(config: Config, data: Dataset, network: Path) -> dict:
    """The τ with the best balanced accuracy on the images that `network` never saw."""
    held_out = load_predictions(network / "oof.npz", data.num_classes)
    heads = {"stage1": load_head(network / "head.safetensors")}
    state = State(held_out.logits, held_out.features, "stage1", heads)
    step = STEPS["tau_norm"](TauNorm(), config)
    if reason := step.refuses(state):
        raise UserError(f"τ-norm cannot act on {network}: {reason}")
    candidates = step.candidates()
    scores = [balanced_accuracy(step.apply(state, c), held_out.label) for c in candidates]
    return candidates[int(np.argmax(scores))]
