"""Open every image once, in parallel: size, sha1, perceptual hash, and the resized copy if asked.

What finished is written to `scan/part-*.csv` as it comes in, so a killed run continues with the
images that are left; the result does not depend on where it was cut.
"""

import hashlib
import io
import multiprocessing
import os
import shutil
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import imagehash
import pandas as pd
from PIL import Image, UnidentifiedImageError

from src import cli
from src.artifacts.files import read_table, write_atomic, write_table
from src.config.data import Data
from src.data.images import is_sealed, sealed, to_rgb
from src.errors import UserError
from src.prepare.sources import portable
from src.progress import progress

PARTS = "scan"  # directory of finished chunks; removed when 01 has finished
CHUNK = 32  # images per task
FLUSH = 256  # images per part file
KEY = ["source", "size", "mtime_ns"]
FACTS = ["width", "height", "sha1", "phash"]
COLUMNS = [*KEY, "width", "height", "sha1", "phash", "path", "problem"]


@dataclass(frozen=True)
class Copy:
    """The resized copy: where it goes, its short side in pixels, its JPEG quality."""

    directory: str
    side: int
    quality: int


def scan_images(paths: list[str], directory: Path, data: Data) -> pd.DataFrame:
    """One row per path, in the given order.

    Columns: source (the path given), path (the file later stages open: the resized copy or the
    source), width, height (upright, of the source), sha1, phash (16 hex digits), and problem, the
    reason why an image cannot be read, or "". Errors: UserError when the disk is full.
    """
    copy = _copy_of(directory, data)
    wanted = pd.DataFrame([_key(path) for path in dict.fromkeys(paths)], columns=KEY)
    known = _load_parts(directory / PARTS, copy)
    known = wanted.merge(known, on=KEY)
    left = wanted.loc[~wanted["source"].isin(known["source"]), "source"].tolist()
    if len(known):
        cli.say(f"{directory / PARTS}: {len(known)} images were read before, {len(left)} are left")
    fresh = _scan(left, directory / PARTS, copy, data.workers)
    rows = pd.concat([known, fresh]) if len(fresh) else known
    rows = rows.set_index("source").loc[paths].reset_index()
    return rows.astype({"width": int, "height": int}).drop(columns=["size", "mtime_ns"])


def clean_up(directory: Path, data: Data) -> None:
    """Remove the finished chunks, and what killed runs left: half files, copies of other size."""
    shutil.rmtree(directory / PARTS, ignore_errors=True)
    for half in directory.rglob(".*.tmp"):
        half.unlink()
    copy, images = _copy_of(directory, data), directory / "images"
    for old in sorted(images.iterdir()) if images.is_dir() else ():
        if copy is None or old.name != Path(copy.directory).name:
            shutil.rmtree(old)


def _copy_of(directory: Path, data: Data) -> Copy | None:
    if data.resize is None:
        return None
    name = f"images/short{data.resize}_q{data.resize_quality}"
    return Copy(portable(directory / name), data.resize, data.resize_quality)


def _scan(paths: list[str], parts: Path, copy: Copy | None, workers: int) -> pd.DataFrame:
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    every, unsaved = [], []
    number = len(list(parts.glob("part-*.csv")))
    with progress(len(paths), "reading images") as bar:
        for rows in _in_parallel(chunks, copy, workers):
            bar.update(len(rows))
            every += rows
            unsaved += [row for row in rows if not row[-1]]  # a broken file is tried again
            if unsaved and (len(unsaved) >= FLUSH or len(every) == len(paths)):
                part = parts / f"part-{number:06d}.csv"
                write_table(part, _table(unsaved), among_many=True)
                number, unsaved = number + 1, []
    return _table(every)


def _in_parallel(chunks: list[list[str]], copy: Copy | None, workers: int):
    if workers == 0 or len(chunks) < 2:
        yield from (_scan_chunk(chunk, copy) for chunk in chunks)
        return
    try:
        with ProcessPoolExecutor(workers, initializer=_end_with_parent) as pool:
            yield from pool.map(_scan_chunk, chunks, [copy] * len(chunks))
    except BrokenProcessPool as error:
        raise UserError(
            "a process that reads images was ended from outside, most often for lack of memory. "
            "Run the same command again, it continues; with data.workers=1 it needs less memory."
        ) from error


def _end_with_parent() -> None:
    """A killed 01 must not leave processes behind that wait for work for ever."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _scan_chunk(paths: list[str], copy: Copy | None) -> list[tuple]:
    return [_scan_one(path, copy) for path in paths]


def _scan_one(path: str, copy: Copy | None) -> tuple:
    """A row of COLUMNS."""
    key = _key(path)
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe never ends
            return (*key, 0, 0, "", "", path, "not a file but a pipe or a device")
        content = Path(path).read_bytes()
        if not content:
            return (*key, 0, 0, "", "", path, "empty file, 0 bytes")
        with warnings.catch_warnings(action="ignore"):
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # as `load_image`
            with Image.open(io.BytesIO(content)) as file:
                image = to_rgb(file)
        phash = str(imagehash.phash(image))
    except UnidentifiedImageError:
        reason = f"not an image, it begins with {content[:12]!r}"
        return (*key, 0, 0, "", "", path, reason)
    except OSError as error:
        reason = error.strerror or f"{type(error).__name__}: {error}"
        if os.path.islink(path) and not os.path.exists(path):
            reason = f"a link that leads nowhere ({reason})"
        return (*key, 0, 0, "", "", path, reason)
    except Exception as error:  # decoders raise nearly anything on damaged files
        return (*key, 0, 0, "", "", path, f"{type(error).__name__}: {error}")
    sha1 = hashlib.sha1(content).hexdigest()
    opened = _write_copy(image, sha1, copy) if copy else None
    return (*key, *image.size, sha1, phash, opened or path, "")


def _write_copy(image: Image.Image, sha1: str, copy: Copy) -> str | None:
    """The path of the resized copy, named by the source's content; None: it is small already."""
    factor = copy.side / min(image.size)
    if factor >= 1:
        return None
    path = f"{copy.directory}/{sha1[:2]}/{sha1}.jpg"
    if not (os.path.exists(path) and is_sealed(Path(path).read_bytes())):
        size = [max(copy.side, round(length * factor)) for length in image.size]
        small = image.resize(size, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=copy.quality)
        content = sealed(buffer.getvalue())
        write_atomic(path, lambda file: file.write(content), among_many=True)
    return path


def _key(path: str) -> tuple[str, int, int]:
    try:
        found = os.stat(path)
    except OSError:  # a link to nothing or to itself; why it cannot be read is said later
        return path, -1, -1
    return path, found.st_size, found.st_mtime_ns


def _table(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


def _load_parts(directory: Path, copy: Copy | None) -> pd.DataFrame:
    """Rows of an interrupted run that still hold: their resized copy, if any, is there."""
    parts = sorted(directory.glob("part-*.csv"))
    if not parts:
        return _table([]).astype({"source": str, "size": int, "mtime_ns": int})
    rows = pd.concat([read_table(part, ("size", "mtime_ns", "width", "height")) for part in parts])
    rows = rows.drop_duplicates(KEY, keep="last")
    if copy is None:
        return rows[rows["path"] == rows["source"]]
    small = rows[["width", "height"]].min(axis=1) <= copy.side
    copied = rows["path"].str.startswith(copy.directory + "/") & rows["path"].map(os.path.exists)
    return rows[copied | (small & (rows["path"] == rows["source"]))]
