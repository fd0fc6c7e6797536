"""The file is filled, read back and compared with the sample before it gets its name."""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from src.artifacts.dataset import Dataset
from src.artifacts.files import read_json, write_atomic
from src.artifacts.ids import check_same_ids
from src.artifacts.work import MANIFEST
from src.config.submission import Submission
from src.errors import UserError, some
from src.submission import FORMATS
from src.submission.answer import Answer
from src.submission.format import Sample, Sheet
from src.submission.recognise import (
    WITHOUT,
    known_ids,
    made_up,
    read_sample,
    recognise,
    without_sample,
)

COLUMNS = {"submission/id_column": str, "submission/label_column": str}  # in 01's manifest
DIGITS = "%.8g"  # a probability without `decimals`


def sample_of(dataset: Dataset, keys: Submission) -> tuple[Sample, Sheet]:
    """The sample that 01 found, and how it is made up; one that is made up in the order of test.csv
    where there is none (any more).

    Errors: UserError when the sample is in no known format, is gone although it decides more than
    the order, or has other images than test.csv.
    """
    facts = read_json(dataset.directory / MANIFEST, COLUMNS)
    told, path = facts["submission"], facts.get("sample_submission")
    classes = dataset.classes["class_id"].tolist()
    if path and Path(path).is_file():
        sample = read_sample(Path(path), classes, keys)
        sheet = recognise(sample, classes, keys)
    else:
        name = keys.format or told.get("format", WITHOUT)
        if path and name in ("probabilities", "long"):
            raise UserError(
                f"{path}: gone since 01 read it; it decides the columns and rows of a submission "
                f"of the format {name}. Put it back, or run 01 with data.sample_submission=null."
            )
        columns = (told["id_column"], told["label_column"])
        given = keys.model_copy(update={"k": keys.k or told.get("k")}) if name == "topk" else keys
        ids = dataset.test["image_id"].tolist()
        sheet = without_sample(columns, given, name)
        sample = made_up(sheet, ids, known_ids(classes, keys))
    found = sample.table[sample.id_column]
    check_same_ids(found, dataset.test["image_id"], str(path or "submission"), "test.csv")
    return sample, sheet


def write_submission(
    path: Path, sample: Sample, sheet: Sheet, answer: Answer, image_id: np.ndarray
) -> Path:
    """image_id: of the answer's rows, [M] · path: gzip'ed where it ends in .gz.

    Errors: UserError when what is read back is not what the competition expects; then nothing is
    written.
    """
    rows = pd.Index(image_id).get_indexer(sample.table[sample.id_column])
    format = FORMATS[sheet.format]
    packed = path.suffix == ".gz"
    decimals = answer.keys.decimals
    style = DIGITS if decimals is None else f"%.{decimals}f"

    def text() -> Iterator[bytes]:
        for part in _parts(sample, format.step(sample)):
            filled = format.fill(sample.table[part], rows[part], answer, sheet, sample.columns)
            lines = filled.to_csv(
                index=False, header=part.start == 0, float_format=style, lineterminator="\n"
            )
            yield lines.encode("utf-8")

    def write(file: io.BufferedIOBase) -> None:
        if packed:  # without a time or a name: the same bytes for the same answer
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as inside:
                inside.writelines(text())
        else:
            file.writelines(text())
        file.flush()
        known = known_ids(answer.classes, answer.keys)
        check_written(Path(file.name), packed, sample, sheet, known, path)

    write_atomic(path, write)
    path.with_name(path.name.removesuffix(".gz") if packed else f"{path.name}.gz").unlink(
        missing_ok=True  # of a run with another submission.gzip: not what was asked for now
    )
    return path


def check_written(
    written: Path, packed: bool, sample: Sample, sheet: Sheet, known: list[str], path: Path
) -> None:
    """Read `written` back, in parts: the sample's columns, ids and rows in its order, every cell
    filled, and the format's own rules.

    path: what it is called in errors · Errors: UserError.
    """
    format = FORMATS[sheet.format]
    step = format.step(sample)
    answers = {sheet.value_column or sheet.label_column} if sheet.prefix is None else set()
    kept = [name for name in sample.table if name not in answers]
    how = {"dtype": str, "keep_default_na": False, "encoding": "utf-8"}
    how |= {"compression": "gzip" if packed else None}
    count = 0
    for found in pd.read_csv(written, chunksize=step, **how):
        expected = sample.table[count : count + len(found)]
        if list(found) != sample.columns:
            raise UserError(
                f"{path}: read back, it has the columns {some(list(found))}, not those of the "
                f"sample, {some(sample.columns)}"
            )
        for name in kept:
            same = found[name].to_numpy() == expected[name].reindex(
                range(count, count + len(found))).to_numpy()  # fmt: skip
            if not same.all():
                raise UserError(
                    f"{path}: read back, {name!r} differs from the sample in {(~same).sum()} rows: "
                    f"{some(found.loc[~same, name].tolist())}"
                )
        empty = [n for n in sample.columns if n not in kept and (found[n].str.strip() == "").any()]
        if empty:
            raise UserError(f"{path}: read back, columns {some(empty)} have empty cells")
        problem = format.problem(found, sheet, known)
        if problem:
            raise UserError(f"{path}: read back, it is no submission: {problem}")
        count += len(found)
    if count != len(sample.table):
        raise UserError(
            f"{path}: read back, it has {count} rows; the sample has {len(sample.table)}"
        )


def copy_submission(path: Path, out: str | Path) -> Path:
    """Copy to `out`, gzip'ed or not as its name says."""
    out, data = Path(out), path.read_bytes()
    if path.suffix == ".gz" and out.suffix != ".gz":
        data = gzip.decompress(data)
    if path.suffix != ".gz" and out.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    return write_atomic(out, lambda file: file.write(data))


def _parts(sample: Sample, step: int) -> Iterator[slice]:
    count = len(sample.table)
    return (slice(i, min(i + step, count)) for i in range(0, count, max(step, 1)))
