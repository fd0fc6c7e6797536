"""Is the ensemble worth it: how its members differ, what each brings, and is it better than the
best of them? All on out-of-fold images, the ensemble cross-fitted."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from src.config.judge import Judge
from src.config.schema import Config
from src.ensemble.choice import Choice, choose
from src.ensemble.combiner import Members, Pool
from src.ensemble.diversity import pairs, predictions
from src.metrics import Gain, paired_gain, sign

Choose = Callable[[Members], Choice]  # how these members are combined


@dataclass(frozen=True)
class Review:
    """pairs: rows of diversity.py · dropped: a row for each member, the score without it and what
    it brings, gain, gain_low, gain_high; empty if not asked for · best: name of the best member ·
    score: of it · gain: of the ensemble over it · fails: why that is not enough, None: it is ·
    instead: the choice of that member alone, its per-fold parameters chosen on the other folds"""

    pairs: list[dict]
    dropped: list[dict]
    best: str
    score: float
    gain: Gain
    fails: str | None
    instead: Choice

    @property
    def says(self) -> str:
        """What to print and to write about the best member."""
        told = f"its best member, {self.best}: gain {self.gain}"
        if self.fails is None:
            return f"By the section judge the ensemble is better than {told}."
        return (
            f"The ensemble is not better than {told} {self.fails} (paired bootstrap). To submit "
            "that member alone, run the same command with --set ensemble.fallback=best --overwrite."
        )

    def facts(self) -> dict:
        """As the manifest has it."""
        best = {"member": self.best, "score": self.score, "better": self.fails is None}
        return {
            "diversity": self.pairs,
            "drop_one": self.dropped,
            "best_member": best | self.gain.named() | {"says": self.says},
        }


def combined(
    names: list[str], pool: Pool, fold: np.ndarray, config: Config
) -> tuple[Choice, Review | None]:
    """How the members are combined, as the sections ensemble and judge ask, and what there is to
    say about it; None of a single member. fold: [N]"""
    keys = config.ensemble

    def choice_of(members: Members) -> Choice:
        by = (keys.combiner, config.judge, pool.bins, pool.target)
        return choose(members, pool.labels, fold, pool.metric, *by)

    choice = choice_of(pool.members)
    if len(names) == 1:
        return choice, None
    found = review(names, pool, fold, choice, config.judge, choice_of if keys.drop_one else None)
    worse = found.fails is not None and keys.fallback == "best"
    return found.instead if worse else choice, found


def review(
    names: list[str],
    pool: Pool,
    fold: np.ndarray,
    choice: Choice,
    rule: Judge,
    choose: Choose | None,
) -> Review:
    """Of two members or more. fold: [N] · choice: how the members of the pool were combined ·
    choose: the same for fewer of them, None: without the table of those left out"""
    whole = choice.outcome(pool, fold)
    alone = [pool.outcome(lambda part, i=i: part[i]) for i in range(len(names))]
    every = np.ones(len(pool.labels), bool)
    scores = [pool.score(outcome, every) for outcome in alone]
    best = int(np.argmax(scores))  # ties: the first by name
    gain = _gain(pool, alone[best], whole)
    labels_by = predictions(pool.members)
    return Review(
        pairs(names, labels_by, pool.labels),
        [] if choose is None else _dropped(names, pool, fold, whole, choose),
        names[best],
        _score(pool, alone[best]),
        gain,
        gain.fails(rule),
        _best_alone(pool, fold, alone, best, names),
    )


def _dropped(
    names: list[str], pool: Pool, fold: np.ndarray, whole: np.ndarray, choose: Choose
) -> list[dict]:
    rows = []
    for i, name in enumerate(names):
        members = [m for j, m in enumerate(pool.members) if j != i]
        rest = Pool(members, pool.labels, pool.metric, pool.bins, pool.target)
        without = choose(rest.members).outcome(rest, fold)
        score = _score(pool, without)
        rows.append({"without": name, "score": score} | _gain(pool, without, whole).named())
    return rows


def _best_alone(
    pool: Pool, fold: np.ndarray, alone: list[np.ndarray], best: int, names: list[str]
) -> Choice:
    """The best member by itself; for each fold the one that is best on the others."""

    def only(i: int) -> dict:
        return {"shares": [float(i == j) for j in range(len(names))]}

    folds = np.unique(fold).tolist()
    per_fold = {
        k: only(int(np.argmax([pool.score(outcome, fold != k) for outcome in alone])))
        if len(folds) > 1
        else only(best)
        for k in folds
    }
    reason = f"{names[best]} alone, as the ensemble is not better (ensemble.fallback: best)"
    return Choice("mean", "best member", reason, only(best), per_fold)


def _gain(pool: Pool, before: np.ndarray, after: np.ndarray) -> Gain:
    return paired_gain(before, after, pool.labels, pool.num_classes, pool.metric, pool.target)


def _score(pool: Pool, outcome: np.ndarray) -> float:
    return sign(pool.metric) * pool.score(outcome, np.ones(len(pool.labels), bool))
