"""Everything the page is made from, read once."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from src.artifacts.dataset import Dataset, load_dataset
from src.artifacts.files import read_json
from src.artifacts.marks import pseudo_labelled
from src.artifacts.oof import optimism
from src.artifacts.trained import trained_config
from src.artifacts.work import MANIFEST, checked
from src.config.schema import Config
from src.errors import UserError
from src.plots.curves import Metrics, load_curves
from src.report.stages import (
    Scored,
    fold_dirs,
    gains,
    load_submissions,
    score_rows,
    score_stages,
    score_untrained,
)


@dataclass(frozen=True)
class Experiment:
    """One experiment: its config, its scored stages (`rows`: with zero-shot and ensembles), its
    manifests by directory, why its scores flatter (`optimism`), what its stages gain over the first
    one by its metric (`gains`), what could not be read (`problem`), and that it trained on
    pseudo-labels, if it did (`pseudo`)."""

    name: str
    config: Config
    home: Path
    stages: dict[str, Scored]
    rows: dict[str, dict]
    curves: Metrics
    manifests: dict[str, dict]
    optimism: list[str]
    gains: dict[str, str]
    problem: str = ""
    pseudo: str | None = None


@dataclass(frozen=True)
class Report:
    """One dataset with its experiments."""

    name: str
    data: Dataset
    experiments: list[Experiment]
    manifest: dict
    submissions: dict[str, dict]
    date: str
    commit: str


def gather(dataset: str, experiments: list[str], configs: list[Config]) -> Report:
    """Read the tables, manifests and predictions, each once.

    configs: one per experiment. Errors: UserError when 01 has not finished.
    """
    data = load_dataset(dataset)
    runs = data.directory.parent
    found = [_experiment(data, n, c) for n, c in zip(experiments, configs, strict=True)]
    paths = [data.directory / MANIFEST, *(p for n in experiments for p in _paths(runs / n))]
    newest = max(paths, key=lambda path: (path.stat().st_mtime, str(path)))
    when = datetime.datetime.fromtimestamp(newest.stat().st_mtime, datetime.UTC)
    submissions = {
        name: facts
        for name, facts in load_submissions(data).items()
        if set(facts["settings"]["members"]) & set(experiments)
    }
    return Report(
        dataset,
        data,
        found,
        read_json(data.directory / MANIFEST),
        submissions,
        f"{when:%Y-%m-%d}",
        read_json(newest).get("git", "unknown"),
    )


def _paths(home: Path) -> list[Path]:
    """Every manifest of an experiment, stage by stage."""
    order = ("search", "stage1", "stage2", "posthoc", "predict")
    return [path for stage in order for path in sorted((home / stage).rglob(MANIFEST))]


def _experiment(data: Dataset, name: str, config: Config) -> Experiment:
    home = data.directory.parent / name
    config = trained_config(config, home)
    manifests = {str(p.parent.relative_to(home)): read_json(p) for p in _paths(home)}
    try:
        stages, problem = score_stages(data, name, config.metric, config=config), ""
        rows = score_untrained(data, name, config.metric, config=config)
        rows |= score_rows(data, name, stages)
    except UserError as error:
        stages, rows, problem = {}, {}, str(error)
    for path in sorted((home / "stage1").glob("*/metrics.csv")):
        checked(path)
    curves = load_curves(home / "stage1")
    reasons = optimism(home / stage for stage in stages)
    found = gains(stages, config.metric, data.num_classes) if stages else {}
    return Experiment(
        name, config, home, stages, rows, curves, manifests, reasons, found, problem,
        pseudo_labelled(home),
    )  # fmt: skip


def unfinished_folds(data: Dataset, home: Path) -> list[int]:
    """Folds without a finished stage 1."""
    return sorted(set(data.folds) - set(fold_dirs(home / "stage1")))
