"""Where the decision meets the format of the submission."""

import numpy as np

from src.errors import UserError
from src.fusion.decision import Decision
from src.metrics import LABELS, PROBABILITIES, metric_of
from src.submission.format import Sheet


def check_fits(metric: str, sheet: Sheet) -> None:
    """Errors: UserError for a metric of probabilities where labels are submitted."""
    of = metric_of(metric)
    if of.of == PROBABILITIES and sheet.format == "label":
        raise UserError(
            f"metric: {of.short} judges probabilities, but the submission has one label per image "
            f"({sheet.why}). Set the metric that the competition scores labels by, or "
            "submission.format to probabilities or long"
        )


def written(decision: Decision, test: np.ndarray, sheet: Sheet) -> np.ndarray:
    """[M, K] of which the file is filled: what the decision makes of the log-probabilities `test`,
    but for a rule for labels where probabilities are asked for."""
    labels = metric_of(decision.metric).of == LABELS
    return test if labels and sheet.format in ("probabilities", "long") else decision.apply(test)
