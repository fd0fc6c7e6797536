"""Files and manifests: how stages talk to each other, and how a killed run is continued.

Every file is written to a temporary name, flushed to the disk and renamed, so a reader never sees
half of one. A `manifest.json` is written last; a directory without one is unfinished work.
"""

import errno
import glob
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel

from src.config import defaults_like, flatten, plain
from src.errors import UserError, some

RUNS = Path("runs")
MANIFEST = "manifest.json"
NOT_CODE = (":!/*.md", ":!/*.png", ":!/benchmarks/scores")  # git's pathspecs
PACKAGES = ("numpy", "pandas", "scikit-learn", "torch", "torchvision", "timm", "albumentations")


# ---- single files ------------------------------------------------------------------------------


def write_atomic(path: str | Path, write: Callable[[io.BufferedIOBase], None]) -> Path:
    """Call `write(file)` on a temporary file beside `path`, then rename it to `path`.

    Errors: UserError when the disk is full; the temporary file is removed and an older `path` is
    left as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(glob.escape(f".{path.name}.") + "*.tmp"):
            left.unlink(missing_ok=True)  # by a process that was killed
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):
            free = shutil.disk_usage(path.parent).free / 2**20
            raise UserError(
                f"{path}: the disk is full ({free:.0f} MiB free); nothing was half-written. "
                "Free some space and run the same command again, it continues where it stopped."
            ) from error
        raise
    return path


def write_bytes(path: str | Path, data: bytes) -> Path:
    return write_atomic(path, lambda file: file.write(data))


def write_text(path: str | Path, text: str) -> Path:
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, tree: dict) -> Path:
    return write_text(path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict:
    """Errors: UserError when the file is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run again") from error


def write_table(path: str | Path, table: pd.DataFrame) -> Path:
    return write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_table(path: str | Path, numbers: Iterable[str] = ()) -> pd.DataFrame:
    """Read a CSV with every column as text (`00123`, `1e5` and `NA` survive), except `numbers`.

    Errors: UserError for a missing or malformed file, a missing column, or a cell of a number
    column that is none.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable CSV table: {error}") from error
    for column in numbers:
        if column not in table:
            raise UserError(f"{path}: column {column!r} is missing; it has {list(table.columns)}")
        try:
            table[column] = pd.to_numeric(table[column])
        except ValueError as error:
            raise UserError(f"{path}: column {column!r} should hold numbers: {error}") from error
    return table


def write_arrays(path: str | Path, **arrays: np.ndarray) -> Path:
    """An `.npz` of plain arrays, the same bytes for the same arrays; text is stored as unicode."""
    return write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Errors: UserError when the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npz file ({error})") from error


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- finished work -----------------------------------------------------------------------------


class Step:
    """One directory of artifacts: is it finished, and with the same settings and inputs?

        step = Step(directory, settings, inputs={"folds.csv": path}, overwrite=args.overwrite)
        if step.finished():
            return
        …                                    # write files into step.directory
        step.finish(outputs, metrics={…})    # writes manifest.json, last

    settings: config sections and plain values that decide what comes out; keys that only set the
    speed are left out. inputs: files it is made from, by name.
    """

    def __init__(
        self,
        directory: Path,
        settings: BaseModel | dict,
        inputs: dict[str, Path],
        *,
        overwrite: bool = False,
        redo_on_new_inputs: bool = True,
    ):
        self.directory = Path(directory)
        self.settings = plain(settings, volatile=False)
        self.defaults = flatten(defaults_like(settings))
        self.inputs = {name: sha256(path) for name, path in sorted(inputs.items())}
        self.redo_on_new_inputs = redo_on_new_inputs
        self.began = time.time()
        if overwrite and self.directory.is_dir():
            (self.directory / MANIFEST).unlink(missing_ok=True)  # first: from here on unfinished
            shutil.rmtree(self.directory)

    def manifest(self) -> dict:
        return read_json(self.directory / MANIFEST)

    def finished(self, *, main: bool = True) -> bool:
        """True: nothing to do. False: start or continue. Only the main process speaks and deletes.

        Errors: UserError when the directory was finished with other settings (names the keys), or
        from other inputs and `redo_on_new_inputs` is off.
        """
        path = self.directory / MANIFEST
        if not path.is_file():
            return False
        manifest = self.manifest()
        self.check_settings(manifest["settings"], path)
        if not self.redo_on_new_inputs:
            self.check_inputs(manifest["inputs"], path)
        changed = self._changed(manifest["inputs"])
        lost = [name for name in manifest["outputs"] if not (self.directory / name).is_file()]
        if changed or lost:
            if main:
                print(f"{self.directory}: {some(changed or lost)} changed since; doing it again")
                path.unlink()
            return False
        if main:
            print(f"{self.directory}: finished already, skipped")
        return True

    def _changed(self, found: dict[str, str]) -> list[str]:
        names = self.inputs.keys() | found.keys()
        return sorted(name for name in names if self.inputs.get(name) != found.get(name))

    def check_inputs(self, found: dict[str, str], origin: Path) -> None:
        """Errors: UserError that names the inputs that are not the ones `origin` was made from."""
        if changed := self._changed(found):
            raise UserError(
                f"{origin}: made from another {some(changed)} than the one there now. "
                "Run again with --overwrite to replace it, or choose another experiment name."
            )

    def check_settings(self, found: dict, origin: Path) -> None:
        """Errors: UserError that names the keys that differ between `found` and these settings.

        A key that did not exist when `found` was written counts as its default.
        """
        old, new = flatten(found), flatten(self.settings)
        old |= {k: self.defaults[k] for k in new.keys() - old.keys() if k in self.defaults}
        keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        if keys:
            lines = [f"  {k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in keys[:12]]
            raise UserError(
                f"{origin}: made with another config; what differs:\n"
                + "\n".join(lines)
                + "\nRun again with --overwrite to replace it, or copy the config to a new name."
            )

    def finish(self, outputs: Iterable[str], metrics: dict | None = None, **facts) -> None:
        """Write the manifest. `outputs` are file names in the directory; `facts` go in as given."""
        write_json(
            self.directory / MANIFEST,
            {
                "status": "finished",
                "argv": sys.argv,
                "settings": self.settings,
                "settings_sha256": digest(self.settings),
                "git": git_state(),
                "inputs": self.inputs,
                "outputs": {name: sha256(self.directory / name) for name in sorted(outputs)},
                "versions": versions(),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "seconds": round(time.time() - self.began, 1),
                "metrics": metrics or {},
                **facts,
            },
        )


def require(path: Path, script: str) -> Path:
    """`path`, or an error that says which script makes it."""
    if not Path(path).exists():
        raise UserError(f"{path} is missing. Run `python {script}` with the same --config first.")
    return Path(path)


def digest(tree: dict) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


def git_state() -> str:
    """Commit, with `+changes` when tracked files other than documents and the benchmarks' scores
    differ from it; `unknown` outside a checkout."""
    here = Path(__file__).parent

    def git(*args):
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True)

    try:
        commit = git("rev-parse", "--short=12", "HEAD").stdout.strip()
        changes = ("status", "--porcelain", "--untracked-files=no", "--", ":/", *NOT_CODE)
        dirty = git(*changes).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if dirty else "")
