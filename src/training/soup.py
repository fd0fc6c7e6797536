"""Soups: the mean of the weights of several experiments' networks (Wortsman et al., ICML 2022).

    uniform   all members
    greedy    members by their score, best first; each stays if the mean with it scores no worse

A network of fold k is made of fold k's networks alone, which never saw its held-out images. Which
members it has is decided by the soups of the other folds on what those hold out, so that fold k's
out-of-fold score is honest, too; `full` goes by all folds.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import Accelerator

from src.artifacts.dataset import INPUTS, Dataset, check_same_folds, fold_name, load_dataset
from src.artifacts.files import read_json
from src.artifacts.lock import locked
from src.artifacts.predictions import load_predictions
from src.artifacts.tensors import read_shapes
from src.artifacts.trained import write_config
from src.artifacts.work import MANIFEST, RUNS, Work, require
from src.config.model import Model
from src.config.schema import Config
from src.config.tree import dump_config, flatten
from src.errors import UserError, some
from src.metrics import OUTCOMES, SCORES, sign
from src.networks.average import Average, refresh_statistics
from src.networks.origins import AGAIN, model_of
from src.networks.weights import load_network
from src.runtime import start
from src.training.job import Fold
from src.training.keep import Made, keep
from src.training.stage1 import check_other_folds, evaluate, parse_fold, scores, settings_of

WEIGHTS = "weights.safetensors"
TRAINING = ("pretrained", "dropout", "drop_path", "head_init")  # in model; gone once it is trained
Members = tuple[str, ...]


@dataclass(frozen=True)
class Kitchen:
    """What soups of one experiment are made from. outcomes: of soups that were tried, by members
    and fold"""

    config: Config
    data: Dataset
    accelerator: Accelerator
    outcomes: dict[tuple[Members, int], np.ndarray] = field(default_factory=dict)

    def weights(self, member: str, fold: int | None) -> Path:
        return RUNS / self.config.dataset / member / "stage1" / fold_name(fold) / WEIGHTS


def soup(config: Config, experiment: str, folds: list[str], overwrite: bool) -> pd.DataFrame:
    """Make the folds asked for (all of them by default); returns a row of metrics per fold.

    Errors: UserError for members that are missing, of other folds, or whose networks differ, before
    any of them is loaded; and as in `stage1`.
    """
    data = load_dataset(config.dataset)
    wanted = [parse_fold(f, data) for f in folds] or data.folds
    home = RUNS / config.dataset / experiment
    if experiment in config.soup.members:
        raise UserError(f"soup.members: {experiment} is the soup itself")
    kitchen = Kitchen(config, data, start(config.train.precision))
    used = {k for k in (*wanted, *(data.folds if config.soup.mode == "greedy" else ()))}
    for fold in sorted(used, key=fold_name):
        check_members(kitchen, fold)
    check_other_folds(config, home / "stage1", {fold_name(fold) for fold in wanted})
    rows = []
    for fold in wanted:
        job = Fold(config, data, fold, home / "stage1" / fold_name(fold), kitchen.accelerator)
        rows.append({"fold": job.name} | make_fold(job, kitchen, overwrite))
    return pd.DataFrame(rows)


def make_fold(job: Fold, kitchen: Kitchen, overwrite: bool) -> dict[str, float]:
    """Choose, average, score and write one fold, or skip it; returns its metrics."""
    config, accelerator = job.config, job.accelerator
    inputs = {name: job.data.directory / name for name in ("folds.csv", "classes.csv")}
    folds = {job.fold, *(job.data.folds if config.soup.mode == "greedy" else ())}
    for member in config.soup.members:
        inputs |= {f"{member}/{fold_name(k)}": kitchen.weights(member, k) for k in folds}
    with accelerator.main_process_first():
        work = Work(
            job.directory, settings_of(config), inputs, overwrite=overwrite,
            redo_on_new_inputs=False, main=accelerator.is_main_process,
        )  # fmt: skip
        finished = work.finished()
    if finished:
        return work.manifest()["metrics"]
    if accelerator.is_main_process:
        with locked(job.directory.parent):
            write_config(job.directory.parents[1], config, {})
    members = chosen(kitchen, job.fold)
    accelerator.print(f"{job.directory}: the mean of {', '.join(members)}")
    made = averaged(kitchen, members, job.fold)
    found = None if job.fold is None else evaluate(job, made.network, made.prep)
    metrics = {} if found is None else scores(job, found)
    keep(job, made, found, metrics, work, [], _facts(kitchen, members, job.fold))
    accelerator.wait_for_everyone()
    return metrics


def chosen(kitchen: Kitchen, fold: int | None) -> Members:
    """The members of a fold's soup."""
    members, soup = kitchen.config.soup.members, kitchen.config.soup
    others = [k for k in kitchen.data.folds if k != fold]
    if soup.mode == "uniform":
        return members
    if not others:
        raise UserError("soup.mode=greedy chooses by other folds, and there is one; use uniform")
    ranked = sorted(members, key=lambda m: -_score(kitchen, (m,), others))  # ties: as listed
    found, best = (ranked[0],), _score(kitchen, (ranked[0],), others)
    for member in ranked[1:]:
        score = _score(kitchen, (*found, member), others)
        if score >= best:
            found, best = (*found, member), score
    return found


def averaged(kitchen: Kitchen, members: Members, fold: int | None) -> Made:
    """The network of a soup."""
    mean, config = Average(), kitchen.config
    for member in members:
        network, prep = load_network(kitchen.weights(member, fold), kitchen.data)
        one = network.state_dict()
        mean.add(one)
    last = {name: tensor.clone() for name, tensor in one.items()}
    network.load_state_dict(mean.mean())
    network.to(kitchen.accelerator.device)
    if config.soup.batchnorm:
        images = kitchen.data.training(fold)
        refresh_statistics(network, last, images, prep, config, kitchen.accelerator)
    return Made(network.eval(), prep)


def _score(kitchen: Kitchen, members: Members, folds: list[int]) -> float:
    """By the metric, higher is better, of soups of these members on what their folds hold out."""
    metric, data = kitchen.config.metric, kitchen.data
    labels = [data.held_out(k).sort_values("image_id")["label"].to_numpy() for k in folds]
    outcome = np.concatenate([_outcome(kitchen, members, k) for k in folds])
    return sign(metric) * SCORES[metric](outcome, np.concatenate(labels), data.num_classes)


def _outcome(kitchen: Kitchen, members: Members, fold: int) -> np.ndarray:
    """[n] of the soup of a fold on what it holds out; a member's own is on disk."""
    key = (members, fold)
    if key not in kitchen.outcomes:
        if len(members) == 1:
            path = kitchen.weights(members[0], fold).with_name("oof.npz")
            found = load_predictions(path, kitchen.data.num_classes)
        else:
            job = Fold(kitchen.config, kitchen.data, fold, Path(), kitchen.accelerator)
            made = averaged(kitchen, members, fold)
            found = evaluate(job, made.network, made.prep)
        kitchen.outcomes[key] = OUTCOMES[kitchen.config.metric](found.logits, found.label)
    return kitchen.outcomes[key]


def _facts(kitchen: Kitchen, members: Members, fold: int | None) -> dict:
    """What the manifest says besides; what must be said of a member must be said of the soup."""
    paths = [kitchen.weights(m, fold).with_name(MANIFEST) for m in kitchen.config.soup.members]
    found = [read_json(path) for path in paths]
    best = any(manifest.get("select") == "best" for manifest in found)
    searched: dict = {}
    for manifest in found:
        searched |= manifest.get("searched", {})
    pseudo = next((m["pseudo"] for m in found if m.get("pseudo")), None)
    return {
        **({"pseudo": pseudo} if pseudo else {}),
        "select": "best" if best else "last",
        "searched": searched,
        "train_seconds": 0.0,
        "soup": list(members),
    }


# ---- what cannot be averaged -------------------------------------------------------------------


def check_members(kitchen: Kitchen, fold: int | None) -> None:
    """Errors: UserError, from headers alone, for a member that has not finished the fold, was made
    from other folds or classes, or has another network; names the first tensor that differs."""
    config, first = kitchen.config, None
    for member in config.soup.members:
        path = kitchen.weights(member, fold)
        script = f"02_train_stage1.py --folds {'full' if fold is None else fold} (of {member})"
        require(path.with_name(MANIFEST), script)
        check_same_folds(read_json(path.with_name(MANIFEST), INPUTS), kitchen.data, path)
        about, shapes = read_shapes(path, AGAIN)
        if first is None:
            first = (path, shapes)
        _check_shapes(*first, path, shapes)
        _check_model(config.model, model_of(about or {}, path), path)


def _check_shapes(one: Path, expected: dict, path: Path, shapes: dict) -> None:
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            there, here = (
                "missing" if name not in found else str(list(found[name]))
                for found in (expected, shapes)
            )
            raise UserError(
                f"soup.members: networks of one shape can be averaged; {name} is {there} in {one} "
                f"and {here} in {path}. Leave one of them out"
            )


def _check_model(asked: Model, there: Model, path: Path) -> None:
    own, theirs = (
        {k: v for k, v in flatten(dump_config(m)).items() if not k.startswith(TRAINING)}
        for m in (asked, there)
    )
    keys = sorted(k for k in own.keys() | theirs.keys() if own.get(k) != theirs.get(k))
    if keys:
        told = [f"model.{k} is {theirs.get(k)!r} there and {own.get(k)!r} here" for k in keys[:4]]
        raise UserError(
            f"soup: {path} has another network than the config: {some(told)}. Copy the section "
            "model of its config, which all members must share"
        )
