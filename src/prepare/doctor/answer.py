"""What the sample submission says: format, metric, an unknown class; and whether the whole reads.

What 01 does first is done here with the choices at hand, so that the config that is written is one
that 01 takes.
"""

from src.config.data import Data
from src.config.submission import Submission
from src.errors import UserError
from src.prepare.doctor.choice import Choice, tree_of
from src.prepare.doctor.ids import ids_of
from src.prepare.doctor.survey import Survey, Table
from src.prepare.doctor.tables import sample_of, solution_of
from src.prepare.read import read_source
from src.prepare.sources import Source

LOSS = ("log_loss", "Probabilities are mostly scored by log-loss; if it is AUC, say so.")
METRICS = {
    "label": (
        "balanced_accuracy",
        "One class id per image is scored by accuracy, by F1 or by recall averaged over classes: "
        "the sample cannot tell which, the competition's page does.",
    ),
    "topk": ("map5", "Several ids per image are mostly scored by mean average precision."),
    "probabilities": LOSS,
    "long": LOSS,
}
OPTIONS = {
    "label": ("metric: accuracy", "metric: macro_f1", "metric: kappa"),
    "topk": ("metric: top5",),
    "probabilities": ("metric: macro_auc",),
    "long": ("metric: macro_auc",),
}
SHORT = 300  # characters of an error in a comment


def answered(survey: Survey, choices: list[Choice]) -> tuple[list[Choice], Source]:
    """All choices about the data, those of the submission and the metric, and the source as 01 will
    read it. Errors: UserError of 01 that no choice here can mend."""
    sample = sample_of(survey)
    files, asked = _files(survey, sample), []
    ids = None if sample is None else ids_of(sample, survey, train=False)
    if ids is not None and ids.column != list(sample.first)[0]:
        asked = [Choice("submission.id_column", ids.column, "the column that names images")]
    first, tried = None, []
    for more in ([], *_unknown(survey, sample)):
        tried = [*choices, *files, *asked, *more]
        try:
            return _with_metric(tried, _read(tried))
        except UserError as error:
            first = first or error
    if sample is None or sample.path not in str(first):
        files = [f for f in files if f.key != "data.solution"]
        tried = [*choices, *files, *asked, _no_solution(str(first))]
        return _with_metric(tried, _read_or(tried, first))
    why = (
        f"NOT SURE. {sample.path} is not understood:\n{str(first)[:SHORT]}\n"
        "Without it 06 writes one class id per image. To have it read, say what it is:"
    )
    options = (
        f"sample_submission: {sample.path}",
        "and, below submission: format: label | topk | probabilities | long, id_column, …",
    )
    none = Choice("data.sample_submission", None, why, options)
    files = [none if f.key == "data.sample_submission" else f for f in files]
    return _with_metric([*choices, *files], _read_or([*choices, *files], first))


def _files(survey: Survey, sample: Table | None) -> list[Choice]:
    found = []
    if sample is None:
        why = "there is none: 06 writes image_id, class_id"
        found.append(Choice("data.sample_submission", None, why))
    else:
        why = "by its name; it fixes the ids, their order and the columns of the submission"
        found.append(Choice("data.sample_submission", sample.path, why))
    solution = solution_of(survey)
    if solution is None:
        why = "there is none, as in most competitions: scores are those of the folds"
        return [*found, Choice("data.solution", None, why)]
    why = "by its name: 06 prints a score with it, and nothing is chosen by it"
    return [*found, Choice("data.solution", solution.path, why)]


def _no_solution(error: str) -> Choice:
    why = f"what could be one is not understood, and 01 does without: {error[:SHORT]}"
    return Choice("data.solution", None, why)


def _read(choices: list[Choice]) -> Source:
    tree = tree_of(choices)
    return read_source(Data(**tree["data"]), Submission(**tree.get("submission", {})))


def _read_or(choices: list[Choice], first: UserError) -> Source:
    try:
        return _read(choices)
    except UserError:
        raise first from None


def _unknown(survey: Survey, sample: Table | None):
    """Ids that the sample has where classes stand and that could be that of an unknown class."""
    if sample is None:
        return
    columns = list(sample.first)[1:]
    words = {word for c in columns[:3] for cell in sample.first[c] for word in cell.split()}
    odd = [w for w in [*columns, *sorted(words)] if any(s in w.lower() for s in ("new", "unknown",
           "none", "other")) or w == "-1"]  # fmt: skip
    for name in list(dict.fromkeys(odd))[:3]:
        why = f"the sample submission has {name!r}, which no training image is of"
        yield [Choice("submission.unknown", {"id": name}, why)]


def _with_metric(choices: list[Choice], source: Source) -> tuple[list[Choice], Source]:
    sheet = source.sheet
    metric, why = METRICS[sheet.format]
    metric = f"map{sheet.k}" if sheet.k else metric
    seen = "there is no sample submission" if source.sample_submission is None else str(sheet)
    kind = Choice("metric", metric, f"{seen}.\n{why}", OPTIONS[sheet.format])
    return [*choices, kind], source
