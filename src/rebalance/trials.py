"""`03_train_stage2.py --search`: settings of the heads that do best on out-of-fold features.

A trial fits the head with the same values on every fold but `search.fold`, each time on what that
fold's network makes of its own training images, as 03 does, and scores the pooled held-out images
of these folds. An inner split of the training features would not do: the network was fitted to
those very images, so a head that repeats stage 1 is near perfect there, whatever its settings do
for new images. Weights belong to one network, but settings carry over, so `search.fold` can judge:
no trial is scored on its held-out images, and they tell what the winner gains over the config's own
values. (They are training images of the other folds, as in all cross-fitting.)

The winner's out-of-fold scores on the other folds, where it was chosen, are slightly optimistic, as
after any choice among results; on `search.fold` they are not. `src.oof.optimism` marks them, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.trial import Trial

from src import cli
from src.artifacts.dataset import FULL, finished_networks, fold_of, load_dataset
from src.artifacts.lock import locked
from src.artifacts.trained import trained_config
from src.artifacts.work import RUNS
from src.config.head_keys import head_key, head_ranges
from src.config.heads import Head
from src.config.read import with_values
from src.config.schema import Config
from src.config.search import Range, Search
from src.config.text import needs_text
from src.config.tree import dump_config, flatten
from src.errors import UserError
from src.language.text import with_text
from src.logits import head_logits
from src.metrics import OUTCOMES, SCORES, paired_gain, short_name
from src.rebalance.stage2 import Experiment, Fold, fit, head_settings, load_fold
from src.runtime import start
from src.search.run import Plan, check_alone, run_search
from src.search.winner import (
    BEST,
    describe,
    found_text,
    head_directory,
    read_best,
    with_winner,
)


def search_heads(config: Config, experiment: str, overwrite: bool) -> dict[str, pd.DataFrame]:
    """Run `search.stage2.trials` trials of each head that has keys to search; their tables by head.

    Writes stage2/<head>/search/, and the cached features. Errors: UserError when there is nothing
    to search, networks are missing, and everything in `run_search`.
    """
    data = load_dataset(config.dataset)
    home = RUNS / config.dataset / experiment
    asked = config
    config, values = with_winner(asked, home, data)
    config = trained_config(config, home)
    accelerator = start(config.train.precision)
    data = with_text(data, config, config.stage2, accelerator)
    work = Experiment(config, data, home, accelerator)
    check_alone(work.accelerator)
    if note := describe(asked, values, home):
        cli.say(note)
    ranges = {name: keys for name, keys in head_ranges(config).items() if keys}
    if not ranges:
        names = [head.title for head in config.stage2]
        raise UserError(
            "search.stage2.keys: there is nothing to search. Give <head>.<key> with a head of "
            f"stage2, which has {names}"
        )
    networks = _networks(work)

    @cache
    def folds() -> list[Fold]:  # asked for by the first trial: a finished search needs no features
        return _load(work, networks, ranges)

    tables = {}
    for name, keys in ranges.items():
        head = Searched(work, name, keys, folds)
        tables[name] = run_search(head.plan(networks), overwrite, head.run, head.judge)
        best = read_best(head_directory(home, name) / BEST)
        cli.say(f"{name}: {found_text(best)}")
    return tables


def _networks(work: Experiment) -> list[Path]:
    """Directories of the folds' networks, `search.fold` last."""
    outer = work.config.search.fold
    found = [path for path in finished_networks(work.home, work.data) if path.name != FULL]
    found.sort(key=lambda path: (fold_of(path) == outer, fold_of(path)))
    if fold_of(found[-1]) != outer or len(found) < 2:
        raise UserError(
            f"--search: values are chosen on the folds other than search.fold={outer} and judged "
            f"on that one; finished are {[path.name for path in found]}. Run `python "
            "02_train_stage1.py --folds …` first"
        )
    return found


def _load(work: Experiment, networks: list[Path], ranges: dict) -> list[Fold]:
    views = 0
    for spec in work.config.stage2:
        name = spec.title
        if name in ranges:
            span = ranges[name].get(f"{name}.views")
            views = max(views, spec.views, *(span.ends if span else ()))
    folds = []
    for stage1 in networks:
        with locked(work.home / "stage2" / "features"):  # the others wait for who computes them
            folds.append(load_fold(work, stage1, views))
    return folds


@dataclass(frozen=True)
class Searched:
    """A head, where its keys are searched, and the folds, of which the last is `search.fold`."""

    work: Experiment
    name: str
    ranges: dict[str, Range]
    folds: Callable[[], list[Fold]]

    @property
    def metric(self) -> str:
        return self.work.config.search.metric or self.work.config.metric

    @property
    def places(self) -> dict[str, str]:
        """`maxnorm.ratio` → `stage2.1.ratio`"""
        return {key: head_key(self.work.config, key, "search.stage2.keys") for key in self.ranges}

    def spec(self, values: dict) -> Head:
        """The head's config with other values."""
        values = {self.places[key]: value for key, value in values.items()}
        config = with_values(self.work.config, values, "search.stage2.keys")
        return next(spec for spec in config.stage2 if spec.title == self.name)

    def plan(self, networks: list[Path]) -> Plan:
        config, search = self.work.config, self.work.config.search
        spec = {"keys": self.ranges, "fold": search.fold, "seed": search.seed}
        own = flatten(dump_config(config))
        files = {"folds.csv": self.work.data.directory / "folds.csv"}
        files |= self.work.data.text_input() if needs_text(self.spec({})) else {}
        for path in networks:
            files[f"{path.name}/weights.safetensors"] = path / "weights.safetensors"
        return Plan(
            head_directory(self.work.home, self.name),
            Search(keys=self.ranges, trials=search.stage2.trials, seed=search.seed, pruner="none"),
            {key: own[place] for key, place in self.places.items()},
            self.metric,
            head_settings(config, self.spec({})) | {"search": spec, "metric": self.metric},
            files,
        )

    def run(self, trial: Trial, values: dict) -> float:
        """The score on all folds but the last. Errors: TrialPruned when training diverges."""
        shown = ", ".join(f"{key} = {value!r}" for key, value in values.items())
        try:
            outcomes, labels = self.pooled(values, self.folds()[:-1])
        except UserError as error:
            trial.set_user_attr("note", str(error))
            cli.say(f"trial {trial.number}: {shown}: {error}")
            raise optuna.TrialPruned from error
        score = SCORES[self.metric](outcomes, labels, self.work.data.num_classes)
        cli.say(f"trial {trial.number}: {shown}: {short_name(self.metric)} {score:.4f}")
        return score

    def judge(self, values: dict) -> dict:
        """What the winner gains over the config's own values on the last fold, and the standard
        error of that; nothing where the own values do not train."""
        after, labels = self.pooled(values, self.folds()[-1:])
        try:
            before, _ = self.pooled({}, self.folds()[-1:])
        except UserError:
            return {}
        num_classes = self.work.data.num_classes
        gain, noise = paired_gain(before, after, labels, num_classes, self.metric)
        fold = self.work.config.search.fold
        return {"fold": fold, "images": len(labels), "gain": gain, "noise": noise}

    def pooled(self, values: dict, folds: list[Fold]) -> tuple[np.ndarray, np.ndarray]:
        """Outcome (src/metrics) and label of each held-out image of some folds, [n], for each
        branch of the network."""
        spec, found, labels = self.spec(values), [], []
        for fold in folds:
            for branch, features in fold.features.items():
                kind, arrays = fit(self.work, spec, branch, fold.stage1, features)
                logits = head_logits(fold.held_out.features, arrays, kind)
                found.append(OUTCOMES[self.metric](logits, fold.held_out.label))
                labels.append(fold.held_out.label)
        return np.concatenate(found), np.concatenate(labels)
