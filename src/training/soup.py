"""Soups: means of the weights of finished networks (Wortsman et al., ICML 2022).

    uniform   all members
    greedy    members by their score, best first; each stays if the mean with it scores no worse
    wise      between where one member began and where it ended (wise.py)

A network of fold k is made of fold k's networks alone, which never saw its held-out images. Which
members it has, and how much of them, is decided by the soups of the other folds on what those hold
out, so that fold k's out-of-fold score is honest, too; `full` goes by all folds.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from src import cli
from src.artifacts.dataset import (
    INPUTS,
    check_same_folds,
    fold_name,
    load_dataset,
    parse_fold,
)
from src.artifacts.files import read_json
from src.artifacts.tensors import AGAIN, read_shapes
from src.artifacts.work import MANIFEST, RUNS, Work, require
from src.config.model import Model
from src.config.schema import Config
from src.config.tree import dump_config, flatten
from src.errors import UserError, some
from src.networks.origins import model_of
from src.runtime import start
from src.training.fold import Fold
from src.training.held_out import evaluate, scores
from src.training.keep import keep
from src.training.kitchen import Kitchen, Mix, mixed, outcomes_score, unweighted
from src.training.stage1 import check_other_folds, settings_of
from src.training.wise import check_start, fit_line

TRAINING = ("pretrained", "dropout", "drop_path", "head_init")  # in model; gone once it is trained


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
    for fold in sorted({*wanted, *judging(kitchen)}, key=fold_name):
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
    folds = {job.fold, *judging(kitchen)}
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
    job = replace(job, directory=work.directory)
    mix, facts = chosen(kitchen, job.fold)
    cli.say(f"{job.directory}: the mean of {_described(mix)}")
    made = mixed(kitchen, mix, job.fold)
    found = None if job.fold is None else evaluate(job, made.network, made.prep)
    metrics = {} if found is None else scores(job, found)
    keep(job, made, found, metrics, work, [], _facts(kitchen, job.fold) | facts)
    accelerator.wait_for_everyone()
    return metrics


def judging(kitchen: Kitchen) -> list[int]:
    """Folds that decide what a soup is made of."""
    return [] if kitchen.config.soup.mode == "uniform" else kitchen.data.folds


def chosen(kitchen: Kitchen, fold: int | None) -> tuple[Mix, dict]:
    """What a fold's soup is made of, and what the manifest says of that."""
    soup = kitchen.config.soup
    others = [k for k in kitchen.data.folds if k != fold]
    if soup.mode != "uniform" and not others:
        raise UserError(
            f"soup.mode={soup.mode} chooses by other folds, and there is one; use uniform"
        )
    if soup.mode == "wise":
        line = fit_line(kitchen)
        return line.mix(fold), {"soup": list(soup.members), "wise": line.facts(fold)}
    members = _greedy(kitchen, others) if soup.mode == "greedy" else list(soup.members)
    return unweighted(members), {"soup": members}


def _greedy(kitchen: Kitchen, others: list[int]) -> list[str]:
    def score(*members: str) -> float:
        return outcomes_score(kitchen, unweighted(members), others)

    members = kitchen.config.soup.members
    ranked = sorted(members, key=lambda m: -score(m))  # ties: as listed
    found, best = [ranked[0]], score(ranked[0])
    for member in ranked[1:]:
        if (now := score(*found, member)) >= best:
            found, best = [*found, member], now
    return found


def _described(mix: Mix) -> str:
    if len({weight for _, weight in mix}) == 1:
        return ", ".join(name for name, _ in mix)
    return " and ".join(f"{weight:g} x {name}" for name, weight in mix)


def _facts(kitchen: Kitchen, fold: int | None) -> dict:
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
        free = () if config.soup.mode == "wise" else TRAINING
        _check_model(config.model, model_of(about or {}, path), path, free)
        if config.soup.mode == "wise":
            check_start(kitchen, fold)


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


def _check_model(asked: Model, there: Model, path: Path, free: tuple[str, ...]) -> None:
    own, theirs = (
        {k: v for k, v in flatten(dump_config(m)).items() if not k.startswith(free)}
        for m in (asked, there)
    )
    keys = sorted(k for k in own.keys() | theirs.keys() if own.get(k) != theirs.get(k))
    if keys:
        told = [f"model.{k} is {theirs.get(k)!r} there and {own.get(k)!r} here" for k in keys[:4]]
        raise UserError(
            f"soup: {path} has another network than the config: {some(told)}. Copy the section "
            "model of its config, which all members must share"
        )
