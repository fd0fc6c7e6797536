"""What 06 has at hand before anything is combined, checked: that experiments go together, the
members, the sample, and whether a submission of this name may be written."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.artifacts.dataset import Dataset, load_dataset
from src.artifacts.files import read_json
from src.artifacts.parts import parts_of
from src.artifacts.target_prior import csv_of, load_target_prior
from src.artifacts.work import RUNS, Work, digest
from src.config.metric import own_files
from src.config.schema import Config
from src.config.tree import plain
from src.ensemble.asked import AskedFor, asked_for
from src.ensemble.combiner import Pool
from src.ensemble.decisions import check_fits
from src.ensemble.members import Member, held_out_by_all, load_members
from src.errors import UserError
from src.fusion.observations import observations_of
from src.metrics import bin_numbers
from src.submission.format import Sample, Sheet
from src.submission.solution import find_solution
from src.submission.write import sample_of

LONGEST = 120  # letters of a submission's name


@dataclass(frozen=True)
class Gathered:
    """configs, experiments: one each per experiment · dataset: with every fold that was trained on
    · scored_on: with the folds that all members have · asked: what the submission has rows for ·
    sample, sheet: the competition's sample and how it is made up · solution: file of true labels ·
    members, pool: what is combined, and its out-of-fold side with labels · fold: [N] · parts: what
    is cross-fitted over, [N], the folds unless there is one alone · name: of the submission in
    `work.directory`"""

    configs: list[Config]
    experiments: list[str]
    dataset: Dataset
    scored_on: Dataset
    asked: AskedFor
    sample: Sample
    sheet: Sheet
    solution: Path | None
    members: list[Member]
    pool: Pool
    fold: np.ndarray
    parts: np.ndarray
    name: str
    work: Work

    @property
    def config(self) -> Config:
        """The first: `check_together` says in what all are alike."""
        return self.configs[0]

    @property
    def homes(self) -> dict[str, Path]:
        return {name: RUNS / self.config.dataset / name for name in self.experiments}


def gather(
    configs: list[Config],
    experiments: list[str],
    solution: str | Path | None,
    overwrite: bool,
    folds: list[str] = (),
) -> Gathered:
    """Errors: UserError when experiments do not go together, an earlier stage is missing, folds
    differ, or a submission of that name was made with other settings (without `overwrite`)."""
    check_together(configs, experiments)
    config = configs[0]
    dataset = load_dataset(config.dataset).choose(folds).numbered("06")
    if dataset.test.empty:
        raise UserError(f"{dataset.directory / 'test.csv'} lists no images: nothing to submit")
    asked = asked_for(config, dataset)
    sample, sheet = sample_of(asked.dataset, config.submission)
    check_fits(config.metric, sheet)
    truth = find_solution(dataset, solution)
    directory, name = RUNS / config.dataset / "submissions", submission_name(experiments)
    scored_on = held_out_by_all(configs, experiments, dataset)
    members = load_members(configs, experiments, dataset, scored_on)
    work = Work(directory, _settings(configs, experiments), _inputs(members, dataset, config))
    manifest = directory / f"{name}.manifest.json"
    if manifest.is_file() and not overwrite:
        work.check_settings(read_json(manifest, {"settings": dict})["settings"], manifest)
    labels, fold, parts = _held_out(scored_on, config)
    bins = bin_numbers(dataset.classes["bin"].to_numpy())
    target = load_target_prior(config, dataset)
    pool = Pool([m.oof for m in members], labels, config.metric, bins, target)
    where = (dataset, scored_on, asked, sample, sheet, truth)
    return Gathered(configs, experiments, *where, members, pool, fold, parts, name, work)


def check_together(configs: list[Config], experiments: list[str]) -> None:
    """Errors: UserError unless experiments have names of their own, and one dataset, metric, way
    of combining, rule for keeping it and format of the submission."""
    if len(set(experiments)) < len(experiments):
        raise UserError(f"--config: experiments need names of their own, found {experiments}")
    for key, values in {
        "dataset": [c.dataset for c in configs],
        "metric": [c.metric for c in configs],
        "target_prior": [c.target_prior for c in configs],
        "ensemble.combiner": [plain(c.ensemble.combiner) for c in configs],
        "ensemble.decision": [c.ensemble.decision for c in configs],
        "ensemble.fallback": [c.ensemble.fallback for c in configs],
        "ensemble.label_shift": [c.ensemble.label_shift for c in configs],
        "ensemble.missing_folds": [c.ensemble.missing_folds for c in configs],
        "judge": [plain(c.judge) for c in configs],
        "submission": [plain(c.submission) for c in configs],
        "data.observation": [c.data.observation for c in configs],
        "observations": [plain(c.observations) for c in configs],
    }.items():
        if any(value != values[0] for value in values):
            pairs = ", ".join(f"{n}: {v}" for n, v in zip(experiments, values, strict=True))
            raise UserError(f"--config: one {key} is needed for an ensemble, found {pairs}")


def submission_name(experiments: list[str]) -> str:
    """The experiments joined by `+`; where that is too long for a file, the first and a digest."""
    name = "+".join(experiments)
    if len(name) <= LONGEST:
        return name
    short = digest({"experiments": experiments})[:8]
    return f"{experiments[0][:80]}+{len(experiments) - 1}-more-{short}"


def _held_out(dataset: Dataset, config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, folds and parts of the held-out images or observations, in the order of members."""
    images = dataset.images[dataset.images["fold"].isin(dataset.folds)]
    ids = np.sort(images["image_id"].to_numpy(str))
    observed = observations_of(config, images, ids, dataset.directory / "folds.csv")
    ids = ids if observed is None else ids[observed.first]
    rows = images.set_index("image_id").loc[ids]
    return rows["label"].to_numpy(), rows["fold"].to_numpy(), parts_of(dataset, ids)


def _settings(configs: list[Config], experiments: list[str]) -> dict:
    keys = configs[0].ensemble  # what earlier submissions lack is named where it is not the default
    newer = {
        k: getattr(keys, k)
        for k in ("decision", "fallback", "label_shift", "missing_folds")
        if k in keys.changed()
    }
    if configs[0].data.observation is not None:
        newer |= {"observation": configs[0].data.observation}
        newer |= {"observations": configs[0].observations}
    if configs[0].target_prior is not None:
        newer["target_prior"] = configs[0].target_prior
    return newer | {
        "members": {n: c.ensemble.members for n, c in zip(experiments, configs, strict=True)},
        "combiner": configs[0].ensemble.combiner,
        "judge": configs[0].judge,
        "submission": configs[0].submission,
        "metric": configs[0].metric,
    }


def _inputs(members: list[Member], dataset: Dataset, config: Config) -> dict[str, Path]:
    found = {n: dataset.directory / n for n in ("folds.csv", "classes.csv", "test.csv")}
    found |= {name: path for m in members for name, path in m.files.items()}
    found |= own_files(config.metric)
    return found | ({"target_prior": path} if (path := csv_of(config)) else {})
