"""Who teaches a fold in `train.distill`, and what it says of the images that the fold trains on.

What keeps out-of-fold scores honest: fold k is taught by the teachers' networks of fold k alone.
A teacher's out-of-fold logits would not do: those of an image of fold j come from a network that
was trained on the labels of fold k, which would so reach the targets of the very network that is
scored on them. Fold k's network of a teacher has seen no label of fold k, and is asked about images
that it was trained on itself, so it is surer than of new ones; a temperature above 1 shows what it
knows beyond the label. 04's steps are those that it chose on the other folds, as in 05.

`full`, where nothing is held out, is taught by `full`, or by the mean of the folds' networks of a
teacher that has none. What the teachers say is made in taught.py, the loss in
src/losses/distillation.py.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import Accelerator

from src.artifacts.dataset import INPUTS, Dataset, check_same_folds, fold_name
from src.artifacts.files import read_json, sha256
from src.artifacts.heads import head_path, load_head
from src.artifacts.oof import script_of
from src.artifacts.predictions import Predictions
from src.artifacts.tensors import AGAIN, read_shapes
from src.artifacts.work import MANIFEST, RUNS, made, require
from src.config.distill import teacher_of
from src.config.losses import balanced_by
from src.config.model import Model
from src.config.names import STAGE1, of_stage1
from src.config.schema import Config
from src.config.training import Train
from src.config.upgrade import upgraded
from src.errors import UserError
from src.fusion import heads_of
from src.fusion.network import all_logits, without_fold
from src.fusion.store import ARRAYS, RECIPE, load_recipe
from src.networks.batchnorm import FILE as STATISTICS
from src.networks.batchnorm import load_statistics
from src.networks.forward import run_evaluation

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Teacher:
    """One network of an experiment. home: of the experiment · head: whose logits it gives · fold:
    its own, None: `full` · files: of the heads that these need, by name"""

    home: Path
    head: str
    fold: int | None
    files: dict[str, Path]

    @property
    def stage1(self) -> Path:
        return self.home / STAGE1 / fold_name(self.fold)

    @property
    def statistics(self) -> dict[str, Path]:
        """Of batch norm, by the heads that changed them."""
        files = {name: path.with_name(STATISTICS) for name, path in self.files.items()}
        return {name: path for name, path in files.items() if path.is_file()}

    def inputs(self) -> dict[str, Path]:
        """All that its logits are made of, by name."""
        found = {WEIGHTS: self.stage1 / WEIGHTS} | self.files
        found |= {f"{name}/{STATISTICS}": path for name, path in self.statistics.items()}
        if self.head == "posthoc":
            paths = [self.home / "posthoc" / name for name in (RECIPE, ARRAYS)]
            found |= {path.name: path for path in paths if path.is_file()}
        name = f"teacher/{self.home.name}/{self.stage1.name}"
        return {f"{name}/{what}": path for what, path in found.items()}

    def recipe(self) -> dict:
        """04's for its fold; of another head none of 04's steps."""
        if self.head != "posthoc":
            return {"head": STAGE1, "steps": []}
        recipe = load_recipe(self.home / "posthoc")
        origin = self.home / "posthoc" / RECIPE
        return recipe if self.fold is None else without_fold(recipe, self.fold, origin)

    def logits(
        self, table: pd.DataFrame, data: Dataset, config: Config, accelerator: Accelerator
    ) -> np.ndarray:
        """[N, K] of the images in `table`, by image_id, of their evaluation view."""
        from src.networks.weights import load_network  # slow to import

        network, prep = load_network(self.stage1 / WEIGHTS, data)
        network.to(accelerator.device)

        def run() -> Predictions:
            label = f"{self.home.name} teaches, {self.stage1.name}"
            return run_evaluation(network, prep, table, config, accelerator, label)

        found, own = run(), {}
        for name, path in self.statistics.items():
            load_statistics(path, network)
            own[name] = run()
        heads = {name: load_head(path) for name, path in self.files.items()}
        counts = data.counts(data.images)
        return all_logits(found, own, heads, self.recipe(), counts)[self.head]


Teachers = list[list[Teacher]]  # of each experiment its networks


def teachers_of(config: Config, experiment: str, data: Dataset, fold: int | None) -> Teachers:
    """Of each experiment of `train.distill` its networks that teach a fold of `experiment`: one, or
    for `full` maybe several. No tensor is loaded for that.

    Errors: UserError when a teacher is this experiment, lacks the fold, or was made from other
    folds, classes or weights than there are now, or when its logits do not suit `balance`.
    """
    return [
        _networks(name, config, experiment, data, fold) for name in config.train.distill.teachers
    ]


def _networks(
    name: str, config: Config, experiment: str, data: Dataset, fold: int | None
) -> list[Teacher]:
    of, head = teacher_of(name)
    home = RUNS / config.dataset / of
    if of == experiment:
        raise UserError(f"train.distill.experiment={name}: it would teach itself; name another")
    folds = [fold]
    if fold is None and not (home / STAGE1 / fold_name(None) / MANIFEST).is_file():
        folds = data.folds
    for k in folds:
        _check_network(home, data, k, fold)
    found = [Teacher(home, head, k, _files(home, head, data, k)) for k in folds]
    for teacher in found:
        _check_balance(teacher, config)
    return found


def _check_network(home: Path, data: Dataset, fold: int | None, student: int | None) -> None:
    stage1 = home / STAGE1 / fold_name(fold)
    number = "full" if fold is None else str(fold)
    command = f"`python 02_train_stage1.py --config configs/{home.name}.yaml --folds {number}`"
    if not (stage1 / MANIFEST).is_file():
        others = [path.parent.name for path in made(home / STAGE1, MANIFEST)]
        seen = (
            f"; {', '.join(others)} {'has' if len(others) == 1 else 'have'} seen what it holds out"
        )
        raise UserError(
            f"train.distill: {stage1} is not finished, and {fold_name(student)} is taught by "
            f"{fold_name(fold)} alone{seen if others and student is not None else ''}. Run "
            f"{command} first."
        )
    manifest = read_json(stage1 / MANIFEST, INPUTS)
    check_same_folds(manifest, data, stage1 / MANIFEST)
    if manifest["inputs"].get("classes.csv") != sha256(data.directory / "classes.csv"):
        about, _ = read_shapes(stage1 / WEIGHTS, AGAIN)
        raise UserError(
            f"train.distill: {stage1}: trained on other classes "
            f"({(about or {}).get('num_classes', '?')} of them) than "
            f"{data.directory / 'classes.csv'} lists ({data.num_classes}); run "
            f"{command[:-1]} --overwrite`"
        )


def _files(home: Path, head: str, data: Dataset, fold: int | None) -> dict[str, Path]:
    """Of the heads that logits of `head` need; none of those that the network gives itself."""
    if head == STAGE1:
        return {}
    needed = {head}
    if head == "posthoc":
        require(home / "posthoc" / MANIFEST, f"04_posthoc_calibrate.py (of {home.name})")
        manifest = read_json(home / "posthoc" / MANIFEST, INPUTS)
        check_same_folds(manifest, data, home / "posthoc" / MANIFEST)
        needed = heads_of(load_recipe(home / "posthoc"))
    found = {}
    for name in sorted(needed):
        path = head_path(home, name, fold_name(fold))
        if name == STAGE1 and not path.is_file():  # several branches, and none is the network's own
            continue
        script = f"{script_of(name)} (of {home.name}, {fold_name(fold)})"
        require(path.with_name(MANIFEST), script)
        _check_head(require(path, script), home, name, data, fold)
        found[name] = path
    return found


def _check_head(path: Path, home: Path, name: str, data: Dataset, fold: int | None) -> None:
    if load_head(path)[0] == "knn":
        raise UserError(
            f"train.distill: {path} votes by the nearest training images, and each is its own "
            "nearest: it would say the label. Name another head"
        )
    if of_stage1(name):
        return
    manifest = read_json(path.with_name(MANIFEST), INPUTS)
    check_same_folds(manifest, data, path.with_name(MANIFEST))
    weights = home / STAGE1 / fold_name(fold) / WEIGHTS
    if manifest["inputs"].get(WEIGHTS) != sha256(weights):
        raise UserError(
            f"train.distill: {path}: made from another network than {weights}; run "
            f"`python 03_train_stage2.py --config configs/{home.name}.yaml` again"
        )


def _check_balance(teacher: Teacher, config: Config) -> None:
    """Errors: UserError when `balance` would balance what is balanced already."""
    if config.train.distill.balance == "none":
        return
    why = None
    if teacher.head == "posthoc":
        steps = [step["step"] for step in teacher.recipe()["steps"]]
        why = "04 adjusted its logits" if "logit_adjustment" in steps else None
        whose = load_recipe(teacher.home / "posthoc")["head"]
    else:
        whose = teacher.head
    if why is None and of_stage1(whose):
        settings = upgraded(read_json(teacher.stage1 / MANIFEST, {"settings": dict})["settings"])
        why = balanced_by(Model(**settings["model"]), Train(**settings["train"]))
    elif why is None:
        why = "heads of stage 2 are made to balance"
    if why is not None:
        raise UserError(
            f"train.distill.balance={config.train.distill.balance} takes the class prior out of "
            f"the teachers' logits, and {teacher.home.name}/{teacher.head} has none in them "
            f"({why}); set balance=none"
        )
