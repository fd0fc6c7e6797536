"""A competition whose tables say what its images are: the keys of source `csv`."""

import re
from dataclasses import dataclass

import pandas as pd

from src.artifacts.files import read_table
from src.errors import some
from src.prepare.doctor.choice import Choice
from src.prepare.doctor.ids import ANY, ENOUGH, Ids, ids_of, nearest_ids
from src.prepare.doctor.labels import Labels, kept_columns, labels_of
from src.prepare.doctor.survey import Survey, Table, is_held_out, is_test, is_train

OTHER = "though not with the directory or the ending that it has there"
SPECIMEN = re.compile(
    r"observation|patient|individual|specimen|lesion|session|seq(uence)?_?id|burst"
)


@dataclass(frozen=True)
class Sheets:
    """The tables by what they are for. train: rows of training images, all of them"""

    table: Table
    train: pd.DataFrame
    ids: Ids
    labels: Labels
    test: tuple[Table, Ids] | None
    sample: Table | None
    passed: dict[str, str]


def sample_of(survey: Survey) -> Table | None:
    """The sample submission, by its name; the least deep of several."""
    named = [t for t in survey.tables if "sample" in t.name or "submission" in t.name]
    return named[0] if named else None


def solution_of(survey: Survey) -> Table | None:
    return next((t for t in survey.tables if "solution" in t.name), None)


def sheets_of(survey: Survey, passed: dict[str, str]) -> Sheets | None:
    """None where no table has a column of images and one of classes.

    passed: of each table that is not taken, why; filled here
    """
    sample = sample_of(survey)
    others = [t for t in survey.tables if t is not sample and t is not solution_of(survey)]
    tests = [(t, ids) for t in others if is_test(t.name) and not is_train(t.name)
             if (ids := ids_of(t, survey, train=False))]  # fmt: skip
    if sample is not None and not tests and (ids := ids_of(sample, survey, train=False)):
        tests = [(sample, ids)]
    in_test = set(tests[0][0].first) if tests and tests[0][0] is not sample else set()
    found = []
    for table in others:
        if table in [t for t, _ in tests]:
            continue
        ids = ids_of(table, survey, train=True)
        if ids is None:
            passed[table.path] = _no_ids(table, survey, train=True)
            continue
        rows = read_table(survey.root / table.path)
        first = None if sample is None else sample.first
        labels = labels_of(rows, ids.column, in_test, first)
        if isinstance(labels, dict):
            reasons = "; ".join(f"{name}: {why}" for name, why in list(labels.items())[:8])
            passed[table.path] = f"no column can be the class: {reasons or 'there is no other'}"
        else:
            found.append((table, rows, ids, labels))
    if not found:
        return None
    best = max(found, key=lambda f: (f[0].name == "train", is_train(f[0].name),
                                     "label" in f[0].name, len(f[1])))  # fmt: skip
    passed |= {f[0].path: f"{len(f[1])} rows" for f in found if f is not best}
    return Sheets(*best, tests[0] if tests else None, sample, passed)


def _no_ids(table: Table, survey: Survey, *, train: bool) -> str:
    """Why `ids_of` finds none."""
    if not len(table.first):
        return "no rows below its header"
    near = nearest_ids(table, survey, train=train)
    if near is None:
        return "no column names images"
    share = f"{near.share:.0%} of the cells of column {near.column!r} name images that are here"
    return f"{share}, in {near.directory}" if near.share >= ENOUGH else f"only {share}"


def split_of(rows: pd.DataFrame) -> str | None:
    """The column that says which rows are for training, for validation and for a test."""
    for name in rows:
        values = set(rows[name].unique()[:9])
        if len(values) < 9 and any(map(is_train, values)):
            if all(is_train(v) or is_test(v) or is_held_out(v) for v in values) and len(values) > 1:
                return name
    return None


def by_tables(survey: Survey, sheets: Sheets) -> list[Choice]:
    train, ids, labels = sheets.table, sheets.ids, sheets.labels
    why = f"{train.path} has {len(sheets.train)} rows with a column of images and one of classes."
    if sheets.passed:
        passed = [f"{path} ({reason})" for path, reason in list(sheets.passed.items())[:4]]
        why += f" Not taken: {'; '.join(passed)}."
    choices = [Choice("data.source", "csv", why), _train(train, sheets.train)]
    test_ids = sheets.test[1] if sheets.test else None
    suffix = ids.suffix
    directories = [ids.directory, test_ids.directory if test_ids else ""]
    if test_ids is not None and test_ids.suffix != suffix:
        suffix = ANY
    choices += [_image_column(ids), *_label_column(labels), *_group_column(sheets)]
    choices.append(Choice("data.train_images", directories[0], _where(ids, survey)))
    if suffix:
        how = (
            "endings differ, or images lie in other directories than the ids say: each id is "
            "looked for below the directory"
            if suffix == ANY
            else f"ids are without ending, and the files end in {suffix}"
        )
        choices.append(Choice("data.suffix", suffix, how))
    return choices + _test(survey, sheets, directories[1])


def _train(table: Table, rows: pd.DataFrame) -> Choice:
    split = split_of(rows)
    if split is None:
        return Choice("data.train", table.path, "the table")
    counts = ", ".join(f"{n} {value!r}" for value, n in rows[split].value_counts().items())
    why = (
        f"NOT SURE. the table; all its rows are trained on, and folds are made of them, whatever "
        f"its column {split!r} says ({counts}). To hold rows out, move them to a table of their "
        "own, and name that in data.test"
    )
    return Choice("data.train", table.path, why)


def _image_column(ids: Ids) -> Choice:
    share = "every cell" if ids.share == 1 else f"{ids.share:.0%} of the cells"
    why = f"{share} that was looked up is an image's name"
    if not ids.as_is:
        why = f"NOT SURE. {why}, {OTHER}"
    return Choice("data.image_column", ids.column, why)


def _where(ids: Ids, survey: Survey) -> str:
    images = len(survey.below(ids.directory))
    return f"the images of the table lie here ({images} images in {ids.directory or 'it'})"


def _label_column(labels: Labels) -> list[Choice]:
    others = "; ".join(f"{name}: {why}" for name, why in list(labels.others.items())[:8])
    what = "classes are columns" if labels.one_hot else "the class"
    why = f"{what}, as {labels.why}." + (f" Considered and not taken: {others}." if others else "")
    if labels.one_hot:
        return [Choice("data.one_hot", True, why)]
    if not labels.sure:
        why = "NOT SURE. " + why + " Is it what the competition asks for?"
    rivals = (
        [f"label_column: {name}" for name in list(labels.others)[:4]] if not labels.sure else []
    )
    choices = [Choice("data.label_column", labels.column, why, tuple(rivals))]
    if labels.name:
        why = "has one value per class, in words: its name"
        choices.append(Choice("data.name_column", labels.name, why))
    return choices


def _group_column(sheets: Sheets) -> list[Choice]:
    """What may say that several images are of one specimen: it is left to the reader."""
    but = {sheets.ids.column, sheets.labels.column, sheets.labels.name}
    rows = sheets.train
    found = [c for c in rows if c not in but and SPECIMEN.search(c.lower())
             and 1 < rows[c].nunique() < len(rows)]  # fmt: skip
    if not found:
        return []
    why = f"images of one {found[0]!r} may look alike: with this key they are in one fold, and "
    why += "scores are of others than were trained on"
    return [Choice("data.group_column", ..., why, (f"group_column: {found[0]}",))]


def _no_test(survey: Survey, sheets: Sheets) -> Choice:
    """A directory of test images that no table lists; or what keeps them from being predicted."""
    lists = [t for t in survey.tables if t is sheets.sample or is_test(t.name)]
    if lists:
        said = "; ".join(f"{t.path}: {_no_ids(t, survey, train=False)}" for t in lists)
        why = ("NOT SURE. no test images are predicted", said, survey.to_extract())
        return Choice("data.test", None, ". ".join(filter(None, why)))
    loose = [d for d in survey.directories() if is_test(d.rpartition("/")[2])]
    inside = sheets.ids.directory
    apart = [d for d in loose if inside and not f"{inside}/".startswith(f"{d}/")]
    apart = [d for d in apart if not d.startswith(f"{inside}/")]
    if apart:
        best = max(apart, key=lambda d: (len(survey.below(d)), -d.count("/")))
        count = len(survey.below(best))
        why = f"no table lists test images: all of this directory are taken ({count} images)"
        return Choice("data.test", best, why)
    why = ["no table lists test images", survey.to_extract()]
    if loose:
        why.append(
            f"There are images in {some(loose)}: to have them predicted, take them out of "
            f"{sheets.table.path}, list them in a table with a column {sheets.ids.column!r}, and "
            "name it here"
        )
    return Choice("data.test", None, ". ".join(filter(None, why)))


def _test(survey: Survey, sheets: Sheets, directory: str) -> list[Choice]:
    if sheets.test is None:
        return [_no_test(survey, sheets)]
    table, ids = sheets.test
    listed = "the sample submission lists" if table is sheets.sample else "it lists"
    why, label = f"{listed} the test images, in column {ids.column!r}", sheets.labels.column
    if label in table.first and table is not sheets.sample:
        why += (
            f". It has {label!r}, too: if those are the true classes, name it as data.solution, "
            f"and below submission id_column: {ids.column} and label_column: {label}"
        )
    if not ids.as_is:
        why = f"NOT SURE. {why}, {OTHER}. Are those the test images?"
    choices = [
        Choice("data.test", table.path, why),
        Choice("data.test_images", directory, _where(ids, survey)),
    ]
    if table is sheets.sample:
        return choices
    but = {sheets.ids.column, sheets.labels.column, sheets.labels.name or "", ids.column}
    kept = kept_columns(sheets.train, table.first, but)
    if kept:
        why = "train and test images have these: they stay beside every image, for 04's priors by "
        why += "metadata and for you; no network sees them"
        choices.append(Choice("data.columns", kept, why))
        repeated = [
            c for c in kept if sheets.sample is not None and c == list(sheets.sample.first)[0]
        ]
        if repeated:
            why = "the sample submission has its rows by this column, and not by images' names"
            choices.append(Choice("data.observation", repeated[0], why))
    return choices
