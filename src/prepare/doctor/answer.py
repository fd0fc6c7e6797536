"""What the sample submission says: format, metric, an unknown class; and whether the whole reads.

What 01 does first is done here with the choices at hand, so that the config that is written is one
that 01 takes.
"""

from pathlib import Path

from src.artifacts.files import read_table
from src.config.data import Data
from src.config.submission import Submission
from src.errors import UserError, some
from src.prepare.doctor.choice import Choice, tree_of
from src.prepare.doctor.ids import ids_of
from src.prepare.doctor.survey import Survey, Table
from src.prepare.doctor.tables import sample_of, solution_of
from src.prepare.read import read_source
from src.prepare.sources import Source
from src.submission.format import Sheet
from src.submission.probabilities import fractions

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
NO_SAMPLE = "there is no sample submission"
SHORT = 1200  # characters of an error in a comment


def answered(survey: Survey, choices: list[Choice]) -> tuple[list[Choice], Source]:
    """All choices about the data, those of the submission and the metric, and the source as 01 will
    read it. Errors: UserError of 01 that no choice here can mend."""
    sample = sample_of(survey)
    csv = tree_of(choices)["data"]["source"] == "csv"
    files, asked = _files(survey, sample, csv), []
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
    none = Choice("data.sample_submission", None, *_not_understood(sample, first))
    tried = [none if c.key == "data.sample_submission" else c for c in [*choices, *files]]
    if ids is not None:
        tried.append(Choice("submission.id_column", ids.column, "as the sample has it"))
    try:
        source = _read(tried)
    except UserError:  # the sample was to list the test images, with a column of its own
        tried = [_of_directory(choices) if c.key == "data.test" else c for c in tried]
        source = _read_or(tried, first)
    if source.train["class_id"].nunique() == 2 and _one_number(sample):
        name = list(sample.first)[-1]
        why = f"{sample.path} has one number for two classes in {name!r}, which is a probability. "
        why += "06 writes those of both: of its two columns, keep the one that is asked for, under "
        why += "that name"
        alone = f"NOT SURE. 06 does not write it as {sample.path} has it, see submission.format"
        none = Choice("data.sample_submission", None, alone)
        tried = [none if c.key == none.key else c for c in tried]
        tried.append(Choice("submission.format", "probabilities", why))
        source = _read(tried)
    return _with_metric(tried, source)


def _not_understood(sample: Table, error: UserError) -> tuple[str, tuple[str, ...]]:
    """Why it is left out, and what to put there instead."""
    text = str(error)
    return (
        f"NOT SURE. {sample.path} is not understood:\n{text[:SHORT]}{'…' * (len(text) > SHORT)}\n"
        "Without it 06 writes one class id per image. To have it read, say what it is:",
        (
            f"sample_submission: {sample.path}",
            "and, below submission: format: label | topk | probabilities | long, id_column, …",
        ),
    )


def _of_directory(choices: list[Choice]) -> Choice:
    """Test images by their directory, where they have one of their own."""
    tree = tree_of(choices)["data"]
    directory = tree.get("test_images")
    if not directory or directory == tree.get("train_images"):
        return Choice("data.test", None, "the sample submission alone lists test images")
    return Choice("data.test", directory, "all images of this directory")


def _one_number(sample: Table) -> bool:
    """Whether each image has one number from 0 to 1 and nothing else."""
    return len(sample.first.columns) == 2 and fractions(sample.first.iloc[:, 1])


def _files(survey: Survey, sample: Table | None, csv: bool) -> list[Choice]:
    found = []
    if sample is None:
        why = "there is none: 06 writes image_id, class_id"
        found.append(Choice("data.sample_submission", None, why))
    else:
        why = "by its name; it fixes the ids, their order and the columns of the submission"
        found.append(Choice("data.sample_submission", sample.path, why))
    solution = solution_of(survey)
    if solution is not None:
        why = "by its name: 06 prints a score with it, and nothing is chosen by it"
        return [*found, Choice("data.solution", solution.path, why)]
    if not csv:
        why = "there is no table of true labels. Where class folders, a list or JSON say those of "
        why += "all test images, 06 prints a score with them, and nothing is chosen by it"
        return [*found, Choice("data.solution", ..., why)]
    why = "there is none, as in most competitions: scores are those of the folds"
    return [*found, Choice("data.solution", None, why)]


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
    sheet, path = source.sheet, source.sample_submission
    metric, why = METRICS[sheet.format]
    metric = f"map{sheet.k}" if sheet.k else metric
    seen = str(sheet)
    if path is None:
        unread = any(c.key == "data.sample_submission" and "NOT SURE" in c.why for c in choices)
        seen = "the sample submission is left out, see above" if unread else NO_SAMPLE
    elif sheet.format == "label":
        seen = _odd_answers(sheet, path, source) or seen
    options = OPTIONS[sheet.format]
    if sheet.format == "label" and source.train["class_id"].nunique() == 2:
        options += ("or, for probabilities, metric: macro_auc, and with it sample_submission: null",
                    "and, below submission: format: probabilities")  # fmt: skip
    return [*choices, Choice("metric", metric, f"{seen}.\n{why}", options)], source


def _odd_answers(sheet: Sheet, path: Path, source: Source) -> str:
    """What is said of a sample whose answers are no class ids; "" of others."""
    cells = set(read_table(path, only=[sheet.label_column])[sheet.label_column])
    strange = sorted(cells - set(source.train["class_id"]))
    if not strange:
        return ""
    return (
        f"NOT SURE. {sheet}: 06 writes class ids such as {some(source.train['class_id'].unique())} "
        "there. If the competition wants others (numbers of classes, matching images), turn them "
        "into those"
    )
