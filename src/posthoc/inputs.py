"""What the search reads: per start head and fold, the out-of-fold logits, features and heads."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.artifacts.dataset import INPUTS, Dataset, fold_name
from src.artifacts.files import read_json
from src.artifacts.heads import load_head
from src.artifacts.oof import check_finished, load_folds
from src.artifacts.predictions import Predictions
from src.artifacts.work import MANIFEST
from src.config.names import of_stage1
from src.config.schema import Config
from src.errors import UserError
from src.fusion.step import Head, State, Step

SCRIPTS = {"stage1": "02_train_stage1.py", "stage2": "03_train_stage2.py"}


@dataclass(frozen=True)
class Start:
    """A head from which the search starts: a state and labels [n] per fold."""

    name: str
    states: dict[int, State]
    labels: dict[int, np.ndarray]


def head_names(config: Config) -> list[str]:
    """`stage1` and the heads of stage 2, in the order of the config."""
    return ["stage1", *(head.title for head in config.stage2)]


def start_names(config: Config) -> list[str]:
    """Heads to start from: those of `posthoc.heads`, or all."""
    return head_names(config) if config.posthoc.heads is None else list(config.posthoc.heads)


def head_dir(experiment: Path, name: str) -> Path:
    return experiment / "stage1" if of_stage1(name) else experiment / "stage2" / name


def script_of(name: str) -> str:
    return SCRIPTS["stage1" if of_stage1(name) else "stage2"]


def input_files(experiment: Path, dataset: Dataset, config: Config) -> dict[str, Path]:
    """Every file that the result depends on, by its name below the experiment.

    Errors: UserError when folds of a stage are missing.
    """
    files = {name: dataset.directory / name for name in ("folds.csv", "classes.csv")}
    for name in head_names(config):
        directory = head_dir(experiment, name)
        check_finished(directory, dataset, script_of(name))
        for fold in dataset.folds:
            for file in ("oof.npz", "head.safetensors"):
                path = directory / fold_name(fold) / file
                if path.is_file():  # some networks have no single head
                    files[path.relative_to(experiment).as_posix()] = path
    return files


def load_stage1(experiment: Path, dataset: Dataset) -> dict[int, Predictions]:
    return load_folds(experiment / "stage1", dataset, SCRIPTS["stage1"])


def load_start(
    name: str,
    steps: list[Step],
    stage1: dict[int, Predictions],
    experiment: Path,
    dataset: Dataset,
    config: Config,
) -> Start:
    """One head, and those that steps read beside it: no more than is needed is in memory.

    Errors: UserError when a stage-2 head was trained on other weights than stage 1 has now.
    """
    reads = {head for step in steps for head in step.reads()}
    found = stage1 if name == "stage1" else _load_folds(name, experiment, dataset)
    given = {"stage1": stage1, name: found}
    given |= {n: _load_folds(n, experiment, dataset) for n in (reads - {name}) & _moved(config)}
    counts = dataset.counts(dataset.images)
    states = {
        fold: State(
            found[fold].logits,
            stage1[fold].features,
            name,
            _load_heads({name} | reads, experiment, fold),
            counts,
            {n: folds[fold].logits for n, folds in given.items()},
        )
        for fold in dataset.folds
    }
    return Start(name, states, {fold: found[fold].label for fold in dataset.folds})


def _moved(config: Config) -> set[str]:
    """Heads whose training changed the backbone's batch norm: stage 1's features are not theirs."""
    return {head.title for head in config.stage2 if getattr(head, "bn", "frozen") == "train"}


def _load_folds(name: str, experiment: Path, dataset: Dataset) -> dict[int, Predictions]:
    """A stage-2 head's predictions."""
    directory = head_dir(experiment, name)
    for fold in map(fold_name, dataset.folds):
        _check_weights(directory / fold, experiment / "stage1" / fold)
    return load_folds(directory, dataset, script_of(name))


def _load_heads(names: set[str], experiment: Path, fold: int) -> dict[str, Head]:
    """Name → (kind, arrays) of the heads of one fold that have a file."""
    paths = {
        name: head_dir(experiment, name) / fold_name(fold) / "head.safetensors" for name in names
    }
    return {name: load_head(path) for name, path in sorted(paths.items()) if path.is_file()}


def _check_weights(head: Path, stage1: Path) -> None:
    """Errors: UserError when 02 was run again since 03 trained the head `head`."""
    used = read_json(head / MANIFEST, INPUTS)["inputs"].get("weights.safetensors")
    now = read_json(stage1 / MANIFEST).get("outputs", {}).get("weights.safetensors")
    if used != now:
        raise UserError(
            f"{head}: trained on features of other weights than {stage1} has now. "
            f"Run `python {SCRIPTS['stage2']}` with the same --config again."
        )
