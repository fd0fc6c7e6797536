"""From the sample submission to how the competition's file is made up."""

import difflib
from pathlib import Path

from src.artifacts.files import SEPARATORS, read_table, separator
from src.config.submission import Submission
from src.errors import UserError, some
from src.submission import FORMATS
from src.submission.format import Sample, Sheet
from src.submission.probabilities import class_columns, find_prefix

WITHOUT = "label"  # the format where nothing says any
SHOWN = 12  # columns in an error


def read_sample(path: Path, classes: list[str], keys: Submission) -> Sample:
    """classes: class ids, [K]. Columns of single classes are not read: there may be thousands.

    Errors: UserError for a column that `keys` names and that is not there, and no rows.
    """
    first = read_table(path, rows=3)
    if (mark := separator(path)) != ",":
        kind = "in TSV" if mark == "\t" else f"with {SEPARATORS[mark]}"
        raise UserError(
            f"{path}: a sample submission {kind}, and submissions are written as CSV. Save it with "
            "commas, name that in data.sample_submission, and turn what 06 writes back."
        )
    columns, known = list(first), known_ids(classes, keys)
    for key in ("id_column", "label_column", "value_column"):
        name = getattr(keys, key)
        wanted = name and not (key == "label_column" and keys.format == "probabilities")
        if wanted and name not in columns:
            near = difflib.get_close_matches(name, columns, 1, 0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{path}: column {name!r} (submission.{key}) is missing; it has "
                f"{some(columns, SHOWN)}{hint}"
            )
    id_column = keys.id_column or columns[0]
    others = [name for name in columns if name != id_column]
    prefix = find_prefix(others, known) if keys.prefix is None else keys.prefix
    single = set() if prefix is None else set(class_columns(others, prefix, known))
    told = keys.format == "probabilities" or len(single) == len(known)
    left = single if told else set()  # some columns that end in a class id say nothing yet
    table = read_table(path, only=[name for name in columns if name not in left])
    if table.empty:
        raise UserError(f"{path}: no rows below the header {some(columns, SHOWN)}; complete it")
    return Sample(path, columns, id_column, table, first, prefix if single else None)


def recognise(sample: Sample, classes: list[str], keys: Submission) -> Sheet:
    """How the sample is made up: of the format that `keys.format` names, or of the only one that it
    can have.

    Errors: UserError when it has none or could have several, with what was seen and which key
    decides; and for keys that the format does not read.
    """
    known = known_ids(classes, keys)
    if keys.unknown and keys.unknown.id in classes:
        raise UserError(
            f"submission.unknown: {keys.unknown.id!r} is a class with training images, predicted "
            "like any other. Set submission.unknown=null."
        )
    asked = {keys.format: FORMATS[keys.format]} if keys.format else FORMATS
    found = {name: format.recognise(sample, known, keys) for name, format in asked.items()}
    sheets = [sheet for sheet in found.values() if isinstance(sheet, Sheet)]
    if len(sheets) != 1:
        raise UserError(_says_what_was_seen(sample, found, keys))
    _check_keys(sheets[0], keys)
    if keys.unknown and sheets[0].format == "probabilities":
        if sheets[0].prefix + keys.unknown.id not in sample.columns:
            raise UserError(
                f"{sample.path}: submission.unknown: no column "
                f"{sheets[0].prefix + keys.unknown.id!r}; it has {some(sample.columns, SHOWN)}"
            )
    return sheets[0]


def without_sample(columns: tuple[str, str], keys: Submission, name: str) -> Sheet:
    """Of the format `name`, as there is no sample that says more.

    columns: of ids and class ids · Errors: UserError for topk without k.
    """
    if name == "topk" and not keys.k:
        raise UserError("submission.format: topk without a sample submission needs submission.k")
    sheet = Sheet(
        name,
        keys.id_column or columns[0],
        keys.label_column or columns[1],
        "asked for" if keys.format else "there is no sample submission",
        value_column=(keys.value_column or "probability") if name == "long" else None,
        k=keys.k,
        prefix=(keys.prefix or "") if name == "probabilities" else None,
    )
    _check_keys(sheet, keys)
    return sheet


def made_up(sheet: Sheet, ids: list[str], known: list[str]) -> Sample:
    """A sample of all these images and classes."""
    table = FORMATS[sheet.format].blank(ids, sheet, known)
    single = [] if sheet.prefix is None else [sheet.prefix + class_id for class_id in known]
    return Sample(None, [*table, *single], sheet.id_column, table, table.head(3), sheet.prefix)


def known_ids(classes: list[str], keys: Submission) -> list[str]:
    """Class ids, and that of the unknown class where there is one."""
    extra = [keys.unknown.id] if keys.unknown and keys.unknown.id not in classes else []
    return [*classes, *extra]


def _check_keys(sheet: Sheet, keys: Submission) -> None:
    """Errors: UserError for keys that would be passed over."""
    every = {key for format in FORMATS.values() for key in format.keys}
    given = {*keys.changed(), *(f"unknown.{k}" for k in (keys.unknown.changed() if keys.unknown
             else ()))}  # fmt: skip
    idle = sorted((given & every) - set(FORMATS[sheet.format].keys))
    if idle:
        raise UserError(
            f"submission.{idle[0]}: not read by the format {sheet.format} ({sheet.why}). Leave it "
            "out, or set submission.format."
        )


def _says_what_was_seen(sample: Sample, found: dict[str, Sheet | str], keys: Submission) -> str:
    several = [name for name, sheet in found.items() if isinstance(sheet, Sheet)]
    names = sample.columns[:SHOWN]
    more = f" … {len(sample.columns)} columns" if len(sample.columns) > SHOWN else ""
    rows = sample.first[names].to_numpy().tolist()
    lines = [f"  {','.join(names)}{more}", *(f"  {','.join(row)}" for row in rows)]
    said = [f"  {name}: {f'{sheet.why}' if isinstance(sheet, Sheet) else f'no, {sheet}'}"
            for name, sheet in found.items()]  # fmt: skip
    if several:
        what, todo = "could be of several formats", "Set submission.format to the right one."
    elif keys.format:
        what = f"not of the format {keys.format}, which submission.format asks for"
        todo = "Correct submission.format, or set it to null to have it told from the file."
    else:
        what = "in no known format"
        todo = (
            "Set submission.format, and the keys in brackets; or data.sample_submission=null for "
            "one class id per image."
        )
    return "\n".join([f"{sample.path}: {what}. It begins with", *lines, "and is", *said, todo])
