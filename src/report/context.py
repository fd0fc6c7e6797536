"""Everything the page is made from, read once."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from src.artifacts.dataset import Dataset, load_dataset
from src.artifacts.files import read_json
from src.artifacts.marks import pseudo_labelled
from src.artifacts.oof import optimism
from src.artifacts.trained import trained_config
from src.artifacts.work import MANIFEST, checked, made
from src.config.schema import Config
from src.errors import UserError
from src.metrics import Gain, sign
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
from src.report.suspects import COLUMNS, suspects

SUSPECTS = "suspects.csv"  # of an experiment


@dataclass(frozen=True)
class Experiment:
    """One experiment: its config, its scored stages (`rows`: with zero-shot and ensembles), its
    manifests by directory, why its scores flatter (`optimism`), what its stages gain over the first
    one by its metric (`gains`), what could not be read (`problem`), and that it trained on
    pseudo-labels, if it did (`pseudo`). suspects: images to look at, see src/report/suspects.py"""

    name: str
    config: Config
    home: Path
    stages: dict[str, Scored]
    rows: dict[str, dict]
    curves: Metrics
    manifests: dict[str, dict]
    optimism: list[str]
    gains: dict[str, Gain]
    problem: str = ""
    pseudo: str | None = None
    suspects: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS))

    @property
    def noise(self) -> dict[str, dict[str, float]]:
        """Standard errors by row of the stage table and score, where they are known."""
        of_rows = {name: row["noise"] for name, row in self.rows.items() if row.get("noise")}
        return of_rows | {name: stage.noise for name, stage in self.stages.items()}

    def score(self, metric: str) -> float:
        """Of the last stage that is cross-fitted or needs no fit; NaN where there is none."""
        scores = list(self.stages.values())[-1].scores if self.stages else {}
        return scores.get(metric, float("nan"))


@dataclass(frozen=True)
class Report:
    """One dataset with its experiments."""

    name: str
    data: Dataset
    experiments: list[Experiment]
    manifest: dict
    submissions: dict[str, dict]
    commit: str

    @property
    def leader(self) -> Experiment | None:
        """The experiment that is best out of fold by the first one's metric, if any is scored."""
        scored = [e for e in self.experiments if e.stages]
        if not scored:
            return None
        metric = self.experiments[0].config.metric
        return max(scored, key=lambda e: (sign(metric) * e.score(metric), e.name))


def gather(dataset: str, experiments: list[str], configs: list[Config]) -> Report:
    """Read the tables, manifests and predictions, each once.

    configs: one per experiment. Errors: UserError when 01 has not finished.
    """
    data = load_dataset(dataset)
    runs = data.directory.parent
    found = [_experiment(data, n, c) for n, c in zip(experiments, configs, strict=True)]
    paths = [data.directory / MANIFEST, *(p for n in experiments for p in manifest_files(runs / n))]
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
        read_json(paths[-1]).get("git", "unknown"),  # the last stage's; files may have any times
    )


def manifest_files(home: Path) -> list[Path]:
    """Every manifest of an experiment, stage by stage, but of what is to replace something."""
    order = ("search", "stage1", "stage2", "posthoc", "predict")
    found = (path for stage in order for path in sorted((home / stage).rglob(MANIFEST)))
    return [p for p in found if not any(x.startswith(".") for x in p.relative_to(home).parts)]


def _experiment(data: Dataset, name: str, config: Config) -> Experiment:
    home = data.directory.parent / name
    config = trained_config(config, home)
    manifests = {str(p.parent.relative_to(home)): read_json(p) for p in manifest_files(home)}
    try:
        stages, problem = score_stages(data, name, config.metric, config=config), ""
        rows = score_untrained(data, name, config.metric, config=config)
        rows |= score_rows(data, name, stages)
    except UserError as error:
        stages, rows, problem = {}, {}, str(error)
    for path in made(home / "stage1", "metrics.csv"):
        checked(path)
    curves = load_curves(home / "stage1")
    reasons = optimism(home / stage for stage in stages)
    found = gains(stages, config.metric, data.num_classes) if stages else {}
    return Experiment(
        name, config, home, stages, rows, curves, manifests, reasons, found, problem,
        pseudo_labelled(home), suspects(stages, data) if stages else pd.DataFrame(columns=COLUMNS),
    )  # fmt: skip


def unfinished_folds(data: Dataset, home: Path) -> list[int]:
    """Folds without a finished stage 1."""
    return sorted(set(data.folds) - set(fold_dirs(home / "stage1")))
