"""From probabilities to decisions: the last thing that is done to logits, after any ensemble.

The most probable class is the best decision for accuracy alone. Other metrics have other rules,
whose few numbers are fitted out of fold (src/fusion/decision_rules.py), each rule on probabilities
that are made honest first:

    p_c ∝ exp(β z_c) n_c^τ    β, τ of least negative log-likelihood, n_c the images of class c

so that a head that was balanced for one metric can be decided for another. What comes out is
scores [N, K] of which the largest is the decision; the logits for further ensembling stay as they
are. Kept is what passes the section `judge`, cross-fitted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from src.artifacts.space import space
from src.config.judge import Judge
from src.config.metric import parse
from src.config.schema import Config
from src.fusion.decision_rules import RULES, Params
from src.metrics import (
    LABELS,
    PROBABILITIES,
    Gain,
    chunks,
    importance,
    left_out,
    metric_of,
    outcomes_of,
    paired_gain,
    short_name,
    summary,
)

OF_METRIC = {
    "macro_f1": "expected_utility",
    "weighted_f1": "expected_utility",
    "f_beta": "expected_utility",
    "kappa": "ordinal",
    "log_loss": "calibration",
    "macro_auc": "calibration",
}
ENOUGH = 2**25  # logits from which β and τ are fitted
BOUNDS = ((1e-3, 1e3), (-3.0, 3.0))  # of β and τ


def rule_of(metric: str) -> str | None:
    """The rule that maximises a metric; None: the largest logit, or their ranking, does."""
    name = parse(metric).name
    if name == "python":
        return "calibration" if metric_of(metric).of == PROBABILITIES else None
    return OF_METRIC.get(name)


@dataclass(frozen=True)
class Decision:
    """rule: its name; empty where it is not used · reason: why · before, after, gain: cross-fitted
    scores of the metric, without and with the rule · final: its parameters · per_fold: those fitted
    without that fold"""

    metric: str
    rule: str
    reason: str
    before: float = float("nan")
    after: float = float("nan")
    gain: Gain = Gain()
    final: Params = field(default_factory=dict)
    per_fold: dict[int, Params] = field(default_factory=dict)

    @property
    def says(self) -> str:
        return f"decisions: {self.rule or 'the largest probability'} ({self.reason})"

    def facts(self) -> dict:
        """As a manifest has it; the parameters may hold arrays (src/fusion/store.py)."""
        known = {"before": self.before, "after": self.after} | self.gain.named()
        known = {name: value for name, value in known.items() if value == value}
        return {"rule": self.rule, "says": self.says, **known, "params": self.final}

    def apply(self, logits: np.ndarray, params: Params | None = None) -> np.ndarray:
        """Scores [N, K] whose largest is the decision, float32; the logits where no rule is used,
        log-probabilities where the metric judges those."""
        if not self.rule:
            return logits
        return _scores(self.rule, logits, self.final if params is None else params)

    def cross_fitted(self, logits: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """The same of out-of-fold logits, each fold with what was fitted on the others."""
        if not self.rule:
            return logits
        out = space(logits.shape)
        for rows in chunks(*out.shape):
            for k in np.unique(fold[rows]).tolist():
                own = np.flatnonzero(fold[rows] == k) + rows.start
                out[own] = self.apply(logits[own], self.per_fold[k])
        return out

    def summary(
        self, logits: np.ndarray, scores: np.ndarray, labels: np.ndarray, bins: np.ndarray
    ) -> dict[str, float]:
        """The row of `src.metrics.summary` when `scores` decide: of what judges labels. Calibration
        stays that of the logits, as such scores are no probabilities."""
        if metric_of(self.metric).of != LABELS:
            return summary(scores, labels, bins, self.metric)
        found = outcomes_of(logits, labels, self.metric)
        calibrated = found.calibration(labels)
        return found.decided(scores).summary(labels, bins, self.metric, calibrated=calibrated)


def decided(
    config: Config,
    logits: Callable[[], np.ndarray],
    labels: np.ndarray,
    fold: np.ndarray,
    target: np.ndarray | None = None,
) -> Decision:
    """How labels are made of cross-fitted logits, as the config asks; see `decide`. logits: gives
    them, and is not asked where there is nothing to decide"""
    if config.ensemble.decision == "plain":
        return Decision(config.metric, "", "asked for")
    if (found := _no_rule(config.metric, fold)) is not None:
        return found
    return decide(logits(), labels, fold, config.metric, config.judge, target)


def decide(
    logits: np.ndarray,
    labels: np.ndarray,
    fold: np.ndarray,
    metric: str,
    judge: Judge,
    target: np.ndarray | None = None,
) -> Decision:
    """The rule of a metric, fitted on out-of-fold logits [N, K] and judged on folds it did not see.

    labels, fold: [N] · target: [K] class prior of the leaderboard, for which images count by
    importance, as they do in scores; None: that of the images. The logits count as given: that they
    were chosen on the same images is the matter of those who chose them.
    """
    if (found := _no_rule(metric, fold)) is not None:
        return found
    name, folds = rule_of(metric), np.unique(fold).tolist()
    of, num_classes = metric_of(metric), logits.shape[1]
    log_prior = np.log(np.maximum(np.bincount(labels, minlength=num_classes), 1))
    log_prior = (log_prior - log_prior.mean()).astype(np.float32)
    before = _outcomes(metric, logits, labels)
    after, per_fold = np.empty_like(before), {}
    for k in folds:
        out = fold == k
        per_fold[k] = _fit(name, logits, labels, ~out, log_prior, metric, target)
        after[out] = _outcomes(metric, logits, labels, name, per_fold[k], out)
    gain = paired_gain(before, after, labels, num_classes, metric, target)
    weights = importance(labels, target)
    scores = [of.score(x, labels, num_classes, weights) for x in (before, after)]
    told = f"{name}'s cross-fitted gain in {of.short} {gain}"
    lacking = "; ".join(["", *filter(None, [left_out(metric, labels, num_classes)])])
    if fails := gain.fails(judge):
        return Decision(metric, "", f"{told} {fails}{lacking}", *scores, gain)
    final = _fit(name, logits, labels, np.ones(len(labels), bool), log_prior, metric, target)
    return Decision(metric, name, told + lacking, *scores, gain, final, per_fold)


def _no_rule(metric: str, fold: np.ndarray) -> Decision | None:
    """The largest logit, where no rule is known or none can be judged; None: there is a rule."""
    name = rule_of(metric)
    if name is None:
        return Decision(metric, "", f"nothing else is better for {short_name(metric)}")
    if len(np.unique(fold)) < 2:
        return Decision(metric, "", f"{name} needs two folds or more to be judged, found one")
    return None


def _fit(
    name: str,
    logits: np.ndarray,
    labels: np.ndarray,
    among: np.ndarray,
    log_prior: np.ndarray,
    metric: str,
    target: np.ndarray | None,
) -> Params:
    """Of the images `among` (a mask, [N])."""
    where, labels = np.flatnonzero(among), labels[among]
    p = space((len(where), logits.shape[1]))  # z at first
    for rows in chunks(*p.shape):
        p[rows] = logits[where[rows]]
    weights = importance(labels, target)
    weights = np.ones(len(labels)) if weights is None else weights
    some = slice(None, None, max(1, p.size // ENOUGH))  # two numbers need no more
    beta, tau = calibrated(p[some], labels[some], log_prior, weights[some])
    params = {"beta": beta, "tau": tau, "log_prior": log_prior}
    for rows in chunks(*p.shape):
        p[rows] = np.exp(_log_posterior(p[rows], params))
    return params | RULES[name].fit(p, labels, metric, weights)


def _scores(name: str, logits: np.ndarray, params: Params) -> np.ndarray:
    out = space(logits.shape)
    for rows in chunks(*out.shape):
        out[rows] = RULES[name].scores(_log_posterior(logits[rows], params), params)
    return out


def _outcomes(
    metric: str, logits: np.ndarray, labels: np.ndarray, name: str = "", params=None, among=...
) -> np.ndarray:
    """Of logits, or of what a rule makes of them, of all images or `among` (a mask, [N])."""
    of, parts, where = metric_of(metric), [], np.arange(len(labels))[among]
    for rows in chunks(len(where), logits.shape[1]):
        part = logits[where[rows]]
        part = _scores(name, part, params) if name else part
        parts.append(of.outcome(part, labels[where[rows]]))
    return np.concatenate(parts)


def _log_posterior(z: np.ndarray, params: Params) -> np.ndarray:
    """log p, [n, K]"""
    shifted = params["beta"] * z.astype(np.float64) + params["tau"] * params["log_prior"]
    return log_softmax(shifted, axis=1)


def calibrated(
    logits: np.ndarray, labels: np.ndarray, log_prior: np.ndarray, weights: np.ndarray
) -> tuple[float, float]:
    """β and τ of least negative log-likelihood: it is convex in both. log_prior: [K] · weights: [N]
    how often each image counts"""

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        total, gradient = 0.0, np.zeros(2)
        beta, tau = theta.astype(np.float32)
        for rows in chunks(*logits.shape):
            y, w = labels[rows, None], weights[rows]
            z = logits[rows] - logits[rows].max(1, keepdims=True)
            s = beta * z + tau * log_prior  # [n, K] float32: exact enough, and fast
            s -= s.max(1, keepdims=True)
            e = np.exp(s)
            norm = e.sum(1, dtype=np.float64)
            of_true = [np.take_along_axis(a, y, 1)[:, 0] for a in (s, z)]
            total += float(w @ (np.log(norm) - of_true[0]))
            gradient[1] += float(w @ (e @ log_prior / norm - log_prior[y[:, 0]]))
            e *= z
            gradient[0] += float(w @ (e.sum(1, dtype=np.float64) / norm - of_true[1]))
        return total / weights.sum(), gradient / weights.sum()

    found = minimize(loss, [1.0, 0.0], jac=True, bounds=BOUNDS, method="L-BFGS-B")
    return float(found.x[0]), float(found.x[1])
