"""What soups are cooked with: finished networks, weighted means of them, and how these score."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from src.artifacts.dataset import Dataset, fold_name
from src.artifacts.files import read_json
from src.artifacts.predictions import load_predictions
from src.artifacts.tensors import AGAIN, read_shapes
from src.artifacts.work import MANIFEST, RUNS
from src.config.read import parse_config
from src.config.schema import Config
from src.config.tree import dump_config
from src.config.upgrade import upgraded
from src.data.transforms import Preprocessing
from src.errors import UserError
from src.metrics import OUTCOMES, SCORES, sign
from src.networks.average import Average, refresh_statistics
from src.networks.base import Network
from src.networks.weights import load_network, rest_of
from src.training.fold import Fold
from src.training.held_out import evaluate
from src.training.job import build_trainer
from src.training.keep import Made

WEIGHTS = "weights.safetensors"
START = "its start"  # an ingredient; no experiment has such a name
Mix = tuple[tuple[str, float], ...]  # experiments, or START, and how much of each


@dataclass(frozen=True)
class Kitchen:
    """What soups of one experiment are made from. outcomes: of soups that were tried, by mix and
    fold · started: the network that a fold began from, of the fold asked for last"""

    config: Config
    data: Dataset
    accelerator: Accelerator
    outcomes: dict[tuple[Mix, int], np.ndarray] = field(default_factory=dict)
    started: dict[int | None, tuple[Network, Preprocessing]] = field(default_factory=dict)

    def weights(self, member: str, fold: int | None) -> Path:
        return RUNS / self.config.dataset / member / "stage1" / fold_name(fold) / WEIGHTS

    def trained_with(self, member: str, fold: int | None) -> Config:
        """The config of a member; what 02 does not read is that of the soup."""
        settings = read_json(self.weights(member, fold).with_name(MANIFEST))["settings"]
        tree = dump_config(self.config) | {"soup": None}
        for key, value in upgraded(settings).items():  # of a section perhaps a part
            tree[key] = tree[key] | value if isinstance(tree.get(key), dict) else value
        return parse_config(tree, f"{member}, as it was trained")


def unweighted(members: Iterable[str]) -> Mix:
    return tuple((member, 1.0) for member in members)


def mixed(kitchen: Kitchen, mix: Mix, fold: int | None) -> Made:
    """The network of a soup. Of a single ingredient nothing changes; START is of the member after
    it, whose files leave out what never trained, and so will the soup's."""
    mean, config = Average(), kitchen.config
    for name, weight in mix:
        if weight:
            network, prep = _ingredient(kitchen, name, fold)
            one = network.state_dict()
            mean.add(one, weight)
    last = {name: tensor.clone() for name, tensor in one.items()}
    network.load_state_dict(mean.mean())
    network.to(kitchen.accelerator.device)
    if config.soup.batchnorm:
        images = kitchen.data.training(fold)
        refresh_statistics(network, last, images, prep, config, kitchen.accelerator)
    partly = mix[0][0] == START
    rest = rest_of(kitchen.weights(mix[-1][0], fold), network) if partly else None
    return Made(network.eval(), prep, rest)


def _ingredient(kitchen: Kitchen, name: str, fold: int | None) -> tuple[Network, Preprocessing]:
    if name != START:
        return load_network(kitchen.weights(name, fold), kitchen.data)
    if fold not in kitchen.started:
        kitchen.started.clear()  # one at a time
        kitchen.started[fold] = start_of(kitchen, fold)
    return kitchen.started[fold]


def start_of(kitchen: Kitchen, fold: int | None) -> tuple[Network, Preprocessing]:
    """The network of the one member as its training began, heads initialised; made anew as 02 made
    it. Errors: UserError as there, where the weights are not to be had any more, and when a tensor
    has another shape than it was trained to."""
    path = kitchen.weights(kitchen.config.soup.members[0], fold)
    config = kitchen.trained_with(kitchen.config.soup.members[0], fold)
    plain = config.train.model_copy(update={"compile": False, "ema": None})
    config = config.model_copy(update={"train": plain})
    trainer, *_ = build_trainer(Fold(config, kitchen.data, fold, path.parent, kitchen.accelerator))
    kitchen.accelerator.free_memory()
    began = trainer.network.eval().state_dict()
    own = {name: tuple(tensor.shape) for name, tensor in began.items()}
    for name, shape in sorted(read_shapes(path, AGAIN)[1].items()):
        if own.get(name) != tuple(shape):
            raise UserError(
                f"soup.mode=wise: {name} is {list(shape)} in {path} and "
                f"{list(own.get(name, ())) or 'missing'} in the network that it began from as it "
                "is made now; weights of one shape can be averaged"
            )
    network, prep = load_network(path, kitchen.data)  # which lacks what only trains, as text towers
    network.load_state_dict({name: began[name] for name in network.state_dict()})
    return network, prep


def outcomes_score(kitchen: Kitchen, mix: Mix, folds: list[int]) -> float:
    """By the metric, higher is better, of soups of this mix on what their folds hold out."""
    metric, data = kitchen.config.metric, kitchen.data
    outcome = np.concatenate([outcome_of(kitchen, mix, k) for k in folds])
    return sign(metric) * SCORES[metric](outcome, held_out_labels(data, folds), data.num_classes)


def held_out_labels(data: Dataset, folds: list[int]) -> np.ndarray:
    """[N], of the images of folds one after the other, each by image_id."""
    found = [data.held_out(k).sort_values("image_id")["label"].to_numpy() for k in folds]
    return np.concatenate(found)


def outcome_of(kitchen: Kitchen, mix: Mix, fold: int) -> np.ndarray:
    """[n] of the soup of a fold on what it holds out; a member's own is on disk."""
    key, used = (mix, fold), [name for name, weight in mix if weight]
    if key not in kitchen.outcomes:
        if len(used) == 1 and used[0] != START:
            path = kitchen.weights(used[0], fold).with_name("oof.npz")
            found = load_predictions(path, kitchen.data.num_classes)
        else:
            job = Fold(kitchen.config, kitchen.data, fold, Path(), kitchen.accelerator)
            made = mixed(kitchen, mix, fold)
            found = evaluate(job, made.network, made.prep)
        kitchen.outcomes[key] = OUTCOMES[kitchen.config.metric](found.logits, found.label)
    return kitchen.outcomes[key]
