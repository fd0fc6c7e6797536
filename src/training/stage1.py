"""Stage 1: folds.csv → a network per fold (and one on every image), with out-of-fold logits."""

import importlib.util
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
from accelerate import Accelerator

from src import cli
from src.artifacts.dataset import fold_name, load_dataset, parse_fold
from src.artifacts.files import read_json
from src.artifacts.lock import locked
from src.artifacts.work import MANIFEST, RUNS, Work, made, replacement, settled
from src.config.schema import Config
from src.config.tree import dump_config, flatten
from src.errors import UserError
from src.language.text import with_text
from src.progress import each
from src.runtime import emulated, start
from src.search.winner import describe, with_winner
from src.training.decide import decided
from src.training.fold import Fold
from src.training.pseudo import pseudo_files
from src.training.teachers import Teachers, teachers_of

DRAW_EVERY = 60  # seconds between two drawings of the curves; the last fold draws them at any rate


def stage1(config: Config, experiment: str, folds: list[str], overwrite: bool) -> pd.DataFrame:
    """Train the folds asked for (all of them by default); returns a row of metrics per fold.

    folds: numbers and `full`. Errors: UserError for a fold that does not exist, finished work with
    another config, and everything in `train_fold`.
    """
    data = load_dataset(config.dataset)
    wanted = [parse_fold(f, data) for f in folds] or data.folds
    names = [fold_name(fold) for fold in wanted]
    _check_tracker(config.train.tracker)
    home = RUNS / config.dataset / experiment
    left = [n for n in names if overwrite or not settled(home / "stage1" / n)]
    anew = overwrite or any(replacement(home / "stage1" / n).is_dir() for n in names)  # stopped
    asked, lines = decided(config, home, data, anew=anew)
    if left:
        from src.data.resizing import check_augment  # slow to import: albumentations

        check_augment(asked)
    config, searched = with_winner(asked, home, data)
    accelerator = _started(config, home)
    for note in filter(None, (*lines, describe(asked, searched, home), emulated(accelerator))):
        cli.say(note)
    data = with_text(data, config, (config.model, config.train), accelerator)
    if left and not isinstance(config.model.pretrained, bool):
        from src.networks.weights import check_warm_start  # slow to import: timm

        check_warm_start(config.model, data, left)
    for fold in (k for k in wanted if fold_name(k) in left):
        teachers_of(config, experiment, data, fold)
        pseudo_files(config, experiment, data, fold)
    check_other_folds(config, home / "stage1", set(names))  # when all that it names is there
    rows, drawn = [], time.monotonic()
    for fold in each(wanted, "training", "folds"):
        name = fold_name(fold)
        job = Fold(
            config, data, fold, home / "stage1" / name, accelerator, searched, tuple(lines),
            again=name in left[1:],
        )  # fmt: skip
        rows.append({"fold": name} | train_fold(job, overwrite))
        accelerator.free_memory()  # it holds on to network and moments of every fold
        late = time.monotonic() - drawn > DRAW_EVERY
        if accelerator.is_main_process and (late or fold == wanted[-1]):
            _draw(home / "stage1")
            drawn = time.monotonic()
    accelerator.end_training()
    return pd.DataFrame(rows)


def _draw(stage1: Path) -> None:
    """The learning curves of all folds."""
    from src.plots.curves import draw_curves, load_curves  # slow to import

    with locked(stage1):  # other folds may be trained by another command
        if curves := load_curves(stage1):  # none of what was not trained
            draw_curves(curves, stage1 / "curves.png")


def _started(config: Config, home: Path) -> Accelerator:
    """Processes and tracker. Errors: UserError for a batch that does not divide among processes."""
    train = config.train
    accelerator = start(train.precision, train.tracker, str(home / "tracker"))
    if train.batch_size % accelerator.num_processes:
        raise UserError(
            f"train.batch_size ({train.batch_size}) must be a multiple of the number of "
            f"processes ({accelerator.num_processes})"
        )
    if train.tracker != "none":
        values = flatten(dump_config(config))  # trackers take numbers and text alone
        simple = {k: v if isinstance(v, int | float | str) else str(v) for k, v in values.items()}
        accelerator.init_trackers(config.dataset, simple)
    return accelerator


def settings_of(config: Config) -> dict:
    """What decides how a network comes out."""
    keys = ("model", "train", "metric", "seed") + (("soup",) if config.soup else ())
    keys += ("judge",) if config.soup and config.soup.mode == "wise" else ()
    found = {key: getattr(config, key) for key in keys}
    if config.model.network.captions:
        found |= {"text": {"names": config.text.names, "templates": config.text.templates}}
    return found


def check_other_folds(config: Config, stage1: Path, wanted: set[str]) -> None:
    """One config.yaml speaks for all folds. Errors: UserError when folds that are not trained now
    were trained with another config."""
    asked = Work(stage1, settings_of(config), {}, shared=True)
    for path in made(stage1, MANIFEST):
        if path.parent.name not in wanted:
            asked.check_settings(read_json(path, {"settings": dict})["settings"], path)


def train_fold(job: Fold, overwrite: bool) -> dict[str, float]:
    """Train, or continue, or skip one fold; returns its metrics (none for `full`).

    Writes last.pt, metrics.csv, weights.safetensors, head.safetensors, oof.npz and manifest.json
    of the fold, and with the last of these config.yaml of the experiment; after no epoch no last.pt
    nor metrics.csv.
    """
    accelerator, config, experiment = job.accelerator, job.config, job.directory.parents[1].name
    labelled = pseudo_files(config, experiment, job.data, job.fold)
    teachers = teachers_of(config, experiment, job.data, job.fold)
    with accelerator.main_process_first():  # it removes what a stopped --overwrite has left
        work = Work(
            job.directory,
            settings_of(config),
            _inputs(job, labelled, teachers),
            overwrite=overwrite,
            redo_on_new_inputs=False,
            main=accelerator.is_main_process,
        )
        finished = work.finished()
    if finished:
        return work.manifest()["metrics"]
    from src.training.train import train  # slow to import: timm

    return train(replace(job, directory=work.directory), labelled, teachers, work)


def _inputs(job: Fold, labelled: dict[str, Path], teachers: Teachers) -> dict[str, Path]:
    """The files that a network is made from, by name."""
    found = {name: job.data.directory / name for name in ("folds.csv", "classes.csv")}
    source = job.config.model.pretrained
    if isinstance(source, str) and Path(source).is_file():
        found["pretrained"] = Path(source)
    found |= job.data.text_input()
    found |= {f"pseudo/{name}": path for name, path in labelled.items()}
    for one in (one for networks in teachers for one in networks):
        found |= one.inputs()
    return found


def _check_tracker(name: str) -> None:
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"train.tracker={name}: not installed; run `pip install {name}`")
