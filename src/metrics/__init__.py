"""Scores of logits, always with an explicit set of K classes. numpy only.

logits: [N, K] · labels: [N] in 0 … K-1 · bins: [K] names such as many / medium / few

Each score is a function of one small fact per image, its `outcome`: the predicted label, whether
the true class is among the top five, or the negative log-likelihood. A search over many candidate
logits keeps their outcomes, [N], and never the logits. Rows are read in chunks, so that no score
needs memory of the size of the logits.
"""

from src.config.metric import short_name, unit
from src.metrics.bins import BINS, bin_names, bin_numbers, need_bins
from src.metrics.calibration import by_bin, classwise, equal_mass, equal_width
from src.metrics.gain import DRAWS, NORMAL, Gain, gain_text, paired_gain, rule_text
from src.metrics.outcomes import CHUNK, among_five, chunks, predicted, probabilities, surprise
from src.metrics.scores import (
    METRICS,
    accuracy,
    balanced_accuracy,
    macro_f1,
    nll,
    recalls,
    top5,
)
from src.metrics.spread import standard_errors, wilson
from src.metrics.summary import Outcomes, calibration, outcomes_of, pooled, summary
from src.metrics.table import (
    LABELS,
    LOWER_IS_BETTER,
    OUTCOMES,
    PROBABILITIES,
    RANKING,
    SCORES,
    Metric,
    left_out,
    metric_of,
    sign,
)
from src.metrics.target import importance

__all__ = [
    "BINS",
    "CHUNK",
    "DRAWS",
    "Gain",
    "LOWER_IS_BETTER",
    "LABELS",
    "METRICS",
    "Metric",
    "NORMAL",
    "OUTCOMES",
    "Outcomes",
    "PROBABILITIES",
    "RANKING",
    "SCORES",
    "accuracy",
    "among_five",
    "balanced_accuracy",
    "bin_names",
    "bin_numbers",
    "by_bin",
    "calibration",
    "chunks",
    "classwise",
    "equal_mass",
    "equal_width",
    "gain_text",
    "importance",
    "left_out",
    "macro_f1",
    "metric_of",
    "need_bins",
    "nll",
    "outcomes_of",
    "paired_gain",
    "pooled",
    "predicted",
    "probabilities",
    "recalls",
    "rule_text",
    "short_name",
    "unit",
    "sign",
    "standard_errors",
    "summary",
    "surprise",
    "top5",
    "wilson",
]
