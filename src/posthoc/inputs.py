"""What the search reads: per start head and fold, the out-of-fold logits, features and heads."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.artifacts.dataset import INPUTS, Dataset, fold_name
from src.artifacts.files import read_json
from src.artifacts.heads import head_path, load_head
from src.artifacts.oof import check_finished, head_dir, load_head_folds, script_of
from src.artifacts.parts import in_parts
from src.artifacts.predictions import Predictions
from src.artifacts.target_prior import csv_of, load_target_prior
from src.artifacts.work import MANIFEST
from src.config.metric import own_files
from src.config.names import STAGE1, of_stage1, title_of
from src.config.schema import Config
from src.errors import UserError
from src.fusion.observations import Observations, fitted_strength, observations_of
from src.fusion.step import Head, State, Step
from src.metrics import SCORES, bin_numbers, chunks, importance

Shared = Callable[[np.ndarray], np.ndarray]  # logits of images → of observations


@dataclass(frozen=True)
class Start:
    """A head from which the search starts: a state and labels [n] per fold.

    observed: by fold, images that share a prediction; none where each stands alone. Steps are
    fitted on images; what is scored are observations
    """

    name: str
    states: dict[int, State]
    labels: dict[int, np.ndarray]
    observed: dict[int, Observations] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return next(iter(self.states.values())).logits.shape[1]

    def scored(self, folds: Iterable[int]) -> np.ndarray:
        """Labels of what is scored in these folds, one after the other."""
        return np.concatenate(
            [self.labels[k][self.observed[k].first if self.observed else ...] for k in folds]
        )

    def shared(self, fold: int, logits: np.ndarray) -> np.ndarray:
        """Logits [n, K] of a fold's images → of what is scored."""
        return self.observed[fold].pool(logits) if self.observed else logits

    def parts(self, fold: int) -> Iterator[tuple[State, Shared, np.ndarray]]:
        """The fold in chunks of rows: their state, what makes of their logits those of what is
        scored, and the labels of that."""
        state, labels = self.states[fold], self.labels[fold]
        if not self.observed:
            for rows in chunks(*state.logits.shape):
                yield state.rows(rows), lambda logits: logits, labels[rows]
            return
        for rows, part in self.observed[fold].parts(self.num_classes):
            yield state.rows(rows), part.pool, labels[rows][part.first]

    @property
    def target(self) -> np.ndarray | None:
        """Class prior under which scores are meant, [K]; None: that of the images."""
        return next(iter(self.states.values())).target

    def score(self, metric: str, outcome: np.ndarray, folds: Iterable[int]) -> float:
        """Of what is scored in some folds, in this order."""
        labels = self.scored(folds)
        weights = importance(labels, self.target)
        return SCORES[metric](outcome, labels, self.num_classes, weights)


def start_names(config: Config) -> list[str]:
    """Heads to start from: those of `posthoc.heads`, or all."""
    return config.head_names if config.posthoc.heads is None else list(config.posthoc.heads)


def input_files(experiment: Path, dataset: Dataset, config: Config) -> dict[str, Path]:
    """Every file that the result depends on, by its name below the experiment.

    Errors: UserError when folds of a stage are missing.
    """
    files = {name: dataset.directory / name for name in ("folds.csv", "classes.csv")}
    if path := csv_of(config):
        files["target_prior"] = path
    files |= own_files(config.metric)
    for name in config.head_names:
        directory = head_dir(experiment, name)
        check_finished(directory, dataset, script_of(name))
        for fold in map(fold_name, dataset.folds):
            for path in (directory / fold / "oof.npz", head_path(experiment, name, fold)):
                if path.is_file():  # a network with branches is no single head
                    files[path.relative_to(experiment).as_posix()] = path
    return files


def check_columns(steps: list[Step], dataset: Dataset) -> None:
    """Errors: UserError for a column that a step reads and folds.csv or test.csv lacks, or that is
    empty for all of its images."""
    for name in sorted({name for step in steps for name in step.columns()}):
        for file, table in (("folds.csv", dataset.images), ("test.csv", dataset.test)):
            there = name in table and (table[name] != "").any()
            if len(table) and not there:
                raise UserError(
                    f"{dataset.directory / file}: the column {name!r} "
                    f"{'is empty' if name in table else 'is missing'}, and a step of posthoc.steps "
                    "reads it; bring it into the tables that 01 reads (data.columns, "
                    "data.metadata) and run 01 again, or leave the step out"
                )


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
    found = stage1 if name == STAGE1 else _load_folds(name, experiment, dataset)
    given = {STAGE1: stage1, name: found}
    given |= {n: _load_folds(n, experiment, dataset) for n in (reads - {name}) & _moved(config)}
    counts, target = dataset.counts(dataset.images), load_target_prior(config, dataset)
    bins = bin_numbers(dataset.classes["bin"])
    states = {
        fold: State(
            found[fold].logits,
            stage1[fold].features,
            name,
            _load_heads({name} | reads, experiment, int(own.fold[0])),
            counts,
            {n: folds[fold].logits for n, folds in given.items()},
            stage1[fold].columns,
            bins,
            target,
        )
        for fold, own in stage1.items()
    }
    labels = {fold: found[fold].label for fold in stage1}
    observed = {}
    if config.data.observation is not None:
        images, origin = dataset.images, dataset.directory / "folds.csv"
        observed = {k: observations_of(config, images, found[k].image_id, origin) for k in stage1}
        logits = {k: found[k].logits for k in stage1}
        strength = fitted_strength(logits, labels, observed, config.metric, config.judge)
        observed = {k: o.with_strength(strength.per_fold[k]) for k, o in observed.items()}
    return Start(name, states, labels, observed)


def _moved(config: Config) -> set[str]:
    """Heads whose training changed the backbone's batch norm: stage 1's features are not theirs."""
    moved = {head.title for head in config.stage2 if getattr(head, "bn", "frozen") == "train"}
    return {name for name in config.head_names if title_of(name) in moved}


def _load_folds(name: str, experiment: Path, dataset: Dataset) -> dict[int, Predictions]:
    """A head's predictions by fold, or by part of a single one, if they are of the network that is
    there now."""
    for fold in () if of_stage1(name) else map(fold_name, dataset.folds):
        _check_weights(experiment / "stage2" / name / fold, experiment / STAGE1 / fold)
    return in_parts(load_head_folds(experiment, name, dataset), dataset)


def _load_heads(names: set[str], experiment: Path, fold: int) -> dict[str, Head]:
    """Name → (kind, arrays) of the heads of one fold that have a file."""
    paths = {name: head_path(experiment, name, fold_name(fold)) for name in names}
    return {name: load_head(path) for name, path in sorted(paths.items()) if path.is_file()}


def _check_weights(head: Path, stage1: Path) -> None:
    """Errors: UserError when 02 was run again since 03 trained the head `head`."""
    used = read_json(head / MANIFEST, INPUTS)["inputs"].get("weights.safetensors")
    now = read_json(stage1 / MANIFEST).get("outputs", {}).get("weights.safetensors")
    if used != now:
        raise UserError(
            f"{head}: trained on features of other weights than {stage1} has now. "
            "Run `python 03_train_stage2.py` with the same --config again."
        )
