"""`--dry-run`: a place where the real code may run and write, and nothing of it is real.

A temporary directory that looks like the working directory: its entries are links, and of the
dataset's runs the directories are real and the files links, so that what is read is what is there,
and what is written, replaced or removed is so there alone. The process then works in it.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.artifacts.dataset import dataset_dir
from src.artifacts.work import RUNS
from src.errors import UserError

CHANGED_IN_PLACE = (".db", ".log")  # by those who open them: copied instead of linked


@contextmanager
def shadow(dataset: str, *, copies: bool = True) -> Iterator[None]:
    """Work in a shadow of the working directory.

    copies: whether 01's resized images are there, too, in one link, as nobody writes them
    """
    here, runs, top = Path.cwd(), Path.cwd() / RUNS, Path(tempfile.mkdtemp(prefix="dry-run-"))
    inside = top / (here.name or "root")
    try:
        link_entries(here.parent, top, but=here.name)  # for paths that begin with ..
        (inside / RUNS).mkdir(parents=True)
        link_entries(here, inside, but=RUNS.name)
        link_entries(runs, inside / RUNS, but=dataset)
        mirror(runs / dataset, inside / RUNS / dataset)
        images = here / dataset_dir(dataset) / "images"
        if copies and images.is_dir():
            (inside / dataset_dir(dataset) / "images").symlink_to(images)
        os.chdir(inside)
        yield
    except UserError as error:  # of the place that the user knows
        raise UserError(str(error).replace(str(inside), str(here))) from None
    finally:
        os.chdir(here)
        shutil.rmtree(top, ignore_errors=True)


def link_entries(source: Path, target: Path, but: str) -> None:
    try:
        entries = [entry.name for entry in os.scandir(source)]
    except OSError:
        return
    for name in entries:
        if name != but:
            (target / name).symlink_to(source / name)


def mirror(source: Path, target: Path) -> None:
    """Directories are made, files linked; but for locks that nobody holds."""
    for place, directories, files in os.walk(source):
        inside = target / Path(place).relative_to(source)
        inside.mkdir(parents=True, exist_ok=True)
        if inside.name == "folds" and "images" in directories:
            directories.remove("images")
        for name in files:
            path = Path(place) / name
            if path.suffix in CHANGED_IN_PLACE:
                shutil.copy2(path, inside / name)
            elif path.suffix != ".lock" or _held(path):
                (inside / name).symlink_to(path)


def _held(path: Path) -> bool:
    """Whether a process has the lock, told without touching it."""
    with open(path, "rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
