"""The expected score and its 90 % interval.

    log(r + ε) ~ N(center + Σ_j β_j x_j,  noise² + τ² + γ² x_conf² + δ² moved²)

center and noise are what out-of-fold images say (measure.py), x_j the terms by which test images
differ: the mean over k networks of E experiments, (1 − 1/k) / E; the learning curve; what classes
with few images learn from the others; and the confidence, by how much worse the probabilities of
the test images expect to score than those of the out-of-fold images do. moved is by how much the
estimated classes of the test set change center. β, what sets differ by that nothing of this
explains (τ, and the more, the more confidence and classes have changed), and how many standard
deviations hold nine in ten were fitted on simulated competitions, for metrics of labels, of
rankings and of probabilities each: a random-effects meta-regression. calibrated.json has them with
their coverage on competitions of other settings; benchmarks/forecast.py writes it.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from src.artifacts.files import read_json
from src.forecast.measure import TERMS, Evidence, Measured, measure
from src.metrics import metric_of, short_name

CALIBRATED = Path(__file__).with_name("calibrated.json")
NUMBERS = ("tau", "gamma", "delta", "width")
CONFIDENCE = TERMS.index("confidence")
TOLD = {  # by what the terms are told
    "ensemble": "the mean of several networks",
    "learning curve": "images that folds hold out",
    "rare classes": "classes with few images",
    "confidence": "confidence on test images",
    "views": "views",
}


@dataclass(frozen=True)
class Model:
    """beta: [len(TERMS)] · tau, gamma, delta: see above · width: deviations either side"""

    beta: np.ndarray
    tau: float
    gamma: float
    delta: float
    width: float

    def center(self, found: Measured) -> float:
        return found.center + float(self.beta @ found.terms) + found.views

    def spread(self, found: Measured) -> float:
        unexplained = self.tau**2 + (self.gamma * found.terms[CONFIDENCE]) ** 2
        unexplained += (self.delta * found.moved) ** 2
        return float(np.sqrt(found.noise**2 + unexplained))


@dataclass(frozen=True)
class Forecast:
    """metric: its text · value, low, high: scores · oof: the score out of fold · steps: what leads
    from there to `value`, in the order of the sum · checked: share of the simulated competitions
    that an interval like this held, and how many they were"""

    metric: str
    value: float
    low: float
    high: float
    oof: float
    steps: dict[str, float]
    checked: tuple[float, int]

    def facts(self) -> dict:
        """As the manifest has it; `read_forecast` is the way back."""
        return vars(self) | {"checked": list(self.checked)}

    def lines(self) -> list[str]:
        share, count = self.checked
        steps = ", ".join(f"{name} {change:+.3f}" for name, change in self.steps.items())
        return [
            f"expected leaderboard score, {short_name(self.metric)}: {self.value:.3f}",
            f"90 % interval: {self.low:.3f} to {self.high:.3f} (such intervals held the truth in "
            f"{100 * share:.0f} % of {count} simulated competitions of other settings)",
            f"out of fold it is {self.oof:.3f}; the difference: {steps}",
        ]


def read_forecast(facts: dict) -> Forecast:
    return Forecast(**facts | {"checked": tuple(facts["checked"])})


def forecast(evidence: Evidence, seed: int = 0) -> Forecast:
    """The score that the submission behind this evidence can expect on as many test images."""
    metric = metric_of(evidence.metric)
    model, checked = calibrated(metric.of)
    found = measure(evidence, seed)
    low, high = interval(model, found, metric.sign)
    at, steps, center = found.reweighted, {}, found.center
    steps["classes as often as among the test images"] = at - found.oof
    value = score_at(model.center(found), found, metric.sign)
    changes = dict(zip(TERMS, model.beta * found.terms, strict=True)) | {"views": found.views}
    for name, change in changes.items():
        center += float(change)
        before = score_at(center - float(change), found, metric.sign)
        steps[TOLD[name]] = score_at(center, found, metric.sign) - before
    steps["the middle of a skewed distribution"] = value - found.oof - sum(steps.values())
    steps = {name: float(change) for name, change in steps.items() if abs(change) >= 5e-4}
    return Forecast(evidence.metric, value, low, high, found.oof, steps, checked)


def interval(model: Model, found: Measured, sign: int) -> tuple[float, float]:
    """Scores that the truth is between nine times in ten, the smaller first."""
    center, reach = model.center(found), model.width * model.spread(found)
    ends = [score_at(center + side * reach, found, sign) for side in (-1, 1)]
    return min(ends), max(ends)


def score_at(log_regret: float, found: Measured, sign: int) -> float:
    return found.best - sign * max(float(np.exp(log_regret)) - found.epsilon, 0.0)


@cache
def calibrated(of: str) -> tuple[Model, tuple[float, int]]:
    """What was fitted for metrics of labels, ranking or probabilities, and how it was checked."""
    facts = read_json(CALIBRATED)[of]
    model = Model(np.array([facts["beta"][n] for n in TERMS]), *(facts[n] for n in NUMBERS))
    return model, (facts["coverage"], facts["competitions"])
