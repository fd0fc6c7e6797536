"""The evidence that members leave of a submission's score, for src/forecast."""

import numpy as np

from src.artifacts.target_prior import load_target_prior
from src.ensemble.choice import Choice
from src.ensemble.gathered import Gathered
from src.ensemble.members import Member
from src.forecast import Evidence, Forecast, Views, forecast
from src.fusion.decision import Decision
from src.metrics import NORMAL


def expected(
    found: Gathered,
    choice: Choice,
    oof: np.ndarray,
    test: np.ndarray,
    given: np.ndarray,
    decision: Decision,
) -> Forecast:
    """oof: the members combined, cross-fitted, [N, K] · test: log-probabilities [M, K] of the test
    images · given: what the submission makes of them, [M, K] · decision: which does so"""
    members, dataset, config = found.members, found.dataset, found.config
    labels, fold = found.pool.labels, found.fold
    shares = np.array(choice.shares or [1 / len(members)] * len(members))
    names = [member.name.partition("/")[0] for member in members]
    experiments = np.unique(names, return_inverse=True)[1]
    by_experiment = np.bincount(experiments, shares)
    networks = [len(member.predicted.get("networks", dataset.folds)) for member in members]
    counts, seen = dataset.counts(dataset.images), np.zeros(len(labels), int)
    for k in np.unique(fold):
        seen[fold == k] = dataset.counts(dataset.training(k))[labels[fold == k]]
    evidence = Evidence(
        oof=oof,
        labels=labels,
        seen=seen,
        counts=counts,
        test=test,
        networks=float(shares @ networks / shares.sum()),
        experiments=float(by_experiment.sum() ** 2 / (by_experiment**2).sum()),
        metric=config.metric,
        target=load_target_prior(config, dataset),
        views=views_of(members, shares, config.metric),
        decided=(decision.cross_fitted(oof, found.parts), given),
    )
    return forecast(evidence, config.seed)


def views_of(members: list[Member], shares: np.ndarray, metric: str) -> Views | None:
    """What 05 found views to be worth out of fold, the mean over members; None: not measured for
    every member, or for another metric."""
    found = [member.predicted.get("views_gain", {}) for member in members]
    if any(facts.get("metric") != metric for facts in found):
        return None
    one, every, low, high = (
        float(np.average([facts[key] for facts in found], weights=shares))
        for key in ("one_view", "all_views", "gain_low", "gain_high")
    )
    return Views(one, every, (high - low) / (2 * NORMAL))
