"""Finished work: a directory with a manifest, written last; without one it is unfinished."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel

from src.artifacts.files import read_json, sha256, write_json
from src.config.tree import defaults_like, flatten, plain
from src.errors import UserError, some

RUNS = Path("runs")
MANIFEST = "manifest.json"
NOT_CODE = (":!/*.md", ":!/*.png", ":!/benchmarks/scores")  # git's pathspecs
PACKAGES = ("numpy", "pandas", "scikit-learn", "torch", "torchvision", "timm", "albumentations")


class Work:
    """One directory of artifacts: is it finished, and with the same settings and inputs?

        work = Work(directory, settings, inputs={"folds.csv": path}, overwrite=args.overwrite)
        if work.finished():
            return
        …                                    # write files into work.directory
        work.finish(outputs, metrics={…})    # writes manifest.json, last

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
        needs = dict.fromkeys(("settings", "inputs", "outputs", "metrics"), dict)
        return read_json(self.directory / MANIFEST, needs)

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
