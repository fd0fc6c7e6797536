"""WiSE-FT: weights between where a fine-tuning began and where it ended (Wortsman et al., "Robust
fine-tuning of zero-shot models", CVPR 2022).

    θ(α) = (1 − α) θ_start + α θ_trained,    α = 0, 1/g, 2/g, …, 1

θ_start is the network before its first step, initialised head included. The α of fold k has the
best score of the networks θ_j(α) of all other folds j on what these hold out, taken together; ties
go to the larger one. So the out-of-fold predictions of fold k have no part in the choice of its
own α. `full` goes by all folds.

All folds together are judged by the one rule (src/metrics/gain.py): unless what the folds chose for
each other gains on the trained networks, α is 1 everywhere, and the soup is its member.
"""

from dataclasses import dataclass

import numpy as np

from src import cli
from src.artifacts.dataset import fold_name
from src.artifacts.files import read_json, sha256
from src.artifacts.work import MANIFEST
from src.errors import UserError
from src.metrics.gain import Gain, paired_gain
from src.networks.origins import source_of
from src.training.kitchen import START, Kitchen, Mix, held_out_labels, outcome_of, outcomes_score


@dataclass(frozen=True)
class Line:
    """member: the experiment · alphas: of each fold, None that of `full` · scores: by α, of all
    folds together, higher is better · gain: of the alphas that the folds chose for each other ·
    dropped: why it is not kept, if so"""

    member: str
    alphas: dict[int | None, float]
    scores: dict[float, float]
    gain: Gain
    dropped: str | None

    def alpha(self, fold: int | None) -> float:
        return 1.0 if self.dropped else self.alphas[fold]

    def mix(self, fold: int | None) -> Mix:
        return between(self.member, self.alpha(fold))

    def facts(self, fold: int | None) -> dict:
        scores = {f"{alpha:g}": score for alpha, score in self.scores.items()}
        found = {"alpha": self.alpha(fold), "fitted": self.alphas[fold], "scores": scores}
        return found | self.gain.named() | {"dropped": self.dropped}


def between(member: str, alpha: float) -> Mix:
    return ((START, 1.0 - alpha), (member, alpha))


def fit_line(kitchen: Kitchen) -> Line:
    """Needs two folds or more."""
    config, data, (member,) = kitchen.config, kitchen.data, kitchen.config.soup.members
    alphas = [i / config.soup.grid for i in range(config.soup.grid, -1, -1)]
    for fold in data.folds:  # fold by fold, as a start is costly and held of one fold
        for alpha in alphas:
            outcome_of(kitchen, between(member, alpha), fold)

    def scores(folds: list[int]) -> dict[float, float]:
        return {a: outcomes_score(kitchen, between(member, a), folds) for a in alphas}

    without = {fold: scores([k for k in data.folds if k != fold]) for fold in data.folds}
    every = scores(data.folds)
    found = {fold: max(s, key=s.get) for fold, s in (without | {None: every}).items()}

    def pooled(chosen: dict[int, float]) -> np.ndarray:
        return np.concatenate(
            [outcome_of(kitchen, between(member, chosen[k]), k) for k in data.folds]
        )

    gain = paired_gain(
        pooled(dict.fromkeys(data.folds, 1.0)), pooled(found),
        held_out_labels(data, data.folds), data.num_classes, config.metric,
    )  # fmt: skip
    why = gain.fails(config.judge)
    cli.say(
        f"{member}: of what its training changed, {found[None]:g} is best on all folds; gain {gain}"
        + (f", which {why}: all of it is kept" if why else "")
    )
    return Line(member, found, every, gain, why)


def check_start(kitchen: Kitchen, fold: int | None) -> None:
    """Errors: UserError when the one member has no start of its own, or its weights file is not
    what it was. Nothing is loaded."""
    member = kitchen.config.soup.members[0]
    path = kitchen.weights(member, fold).with_name(MANIFEST)
    facts = read_json(path, {"settings": dict, "inputs": dict})
    if facts["settings"].get("soup"):
        raise UserError(
            f"soup.mode=wise: {member} is a soup itself, which was not trained from any start; "
            "name an experiment that 02 trained"
        )
    if (then := facts["inputs"].get("pretrained")) is None:
        return
    source = source_of(kitchen.trained_with(member, fold).model, kitchen.config.dataset, "")
    now = sha256(source) if source.is_file() else None
    if now != then:
        found = "is missing" if now is None else f"now has sha256 {now[:12]}…"
        raise UserError(
            f"soup.mode=wise: {member}, {fold_name(fold)}, began from {source} with sha256 "
            f"{then[:12]}…, and that file {found}; bring it back"
        )
