"""A competition whose tables say what its images are: the keys of source `csv`."""

from dataclasses import dataclass

import pandas as pd

from src.artifacts.files import read_table
from src.errors import some
from src.prepare.doctor.choice import Choice
from src.prepare.doctor.ids import ANY, Ids, ids_of
from src.prepare.doctor.labels import Labels, kept_columns, labels_of
from src.prepare.doctor.survey import Survey, Table, is_test, is_train


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


def sheets_of(survey: Survey) -> Sheets | None:
    """None where no table has a column of images and one of classes."""
    sample, passed = sample_of(survey), {}
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
            passed[table.path] = "no column names images"
            continue
        rows = read_table(survey.root / table.path)
        first = None if sample is None else sample.first
        labels = labels_of(rows, ids.column, in_test, first)
        if labels is None:
            passed[table.path] = "no column can be the class"
        else:
            found.append((table, rows, ids, labels))
    if not found:
        return None
    best = max(found, key=lambda f: (is_train(f[0].name), "label" in f[0].name, len(f[1])))
    passed |= {f[0].path: f"{len(f[1])} rows" for f in found if f is not best}
    return Sheets(*best, tests[0] if tests else None, sample, passed)


def by_tables(survey: Survey, sheets: Sheets) -> list[Choice]:
    train, ids, labels = sheets.table, sheets.ids, sheets.labels
    why = f"{train.path} has {len(sheets.train)} rows with a column of images and one of classes."
    if sheets.passed:
        passed = [f"{path} ({reason})" for path, reason in list(sheets.passed.items())[:4]]
        why += f" Not taken: {'; '.join(passed)}."
    choices = [Choice("data.source", "csv", why), Choice("data.train", train.path, "the table")]
    test_ids = sheets.test[1] if sheets.test else None
    suffix = ids.suffix
    directories = [ids.directory, test_ids.directory if test_ids else ""]
    if test_ids is not None and test_ids.suffix != suffix:
        suffix = ANY
    choices += [_image_column(ids), *_label_column(labels)]
    choices.append(Choice("data.train_images", directories[0], _where(ids, survey)))
    if suffix:
        how = (
            "endings differ, or images lie in directories that the ids do not name: each id is "
            "looked for below the directory"
            if suffix == ANY
            else f"ids are without ending, and the files end in {suffix}"
        )
        choices.append(Choice("data.suffix", suffix, how))
    return choices + _test(survey, sheets, directories[1])


def _image_column(ids: Ids) -> Choice:
    share = "every cell" if ids.share == 1 else f"{ids.share:.0%} of the cells"
    return Choice("data.image_column", ids.column, f"{share} that was looked up is an image's name")


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


def _test(survey: Survey, sheets: Sheets, directory: str) -> list[Choice]:
    if sheets.test is None:
        loose = [f for f in survey.folders if is_test(f)]
        hint = ""
        if loose:
            hint = (
                f" There are images in {some(loose)}: to have them predicted, list them in a table "
                f"with a column {sheets.ids.column!r}, and name it here."
            )
        return [Choice("data.test", None, f"no table lists test images.{hint}")]
    table, ids = sheets.test
    listed = "the sample submission lists" if table is sheets.sample else "it lists"
    choices = [
        Choice("data.test", table.path, f"{listed} the test images, in column {ids.column!r}"),
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
            why = "the sample submission has a row for each of these, and not for each image"
            choices.append(Choice("data.observation", repeated[0], why))
    return choices
