"""Finished work: a directory with a manifest, written last; without one it is unfinished."""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path, PurePosixPath

from pydantic import BaseModel

from src import cli
from src.artifacts.files import read_json, sha256, write_json
from src.artifacts.lock import let_go, own
from src.config.tree import defaults_like, flatten, plain
from src.config.upgrade import upgraded
from src.errors import UserError, some

RUNS = Path("runs")
MANIFEST = "manifest.json"
NOT_CODE = (":!/*.md", ":!/*.png", ":!/benchmarks/scores")  # git's pathspecs
PACKAGES = ("numpy", "pandas", "scikit-learn", "torch", "torchvision", "timm", "albumentations")


class Work:
    """One directory of artifacts: is it finished, and with the same settings and inputs?

    overwrite: what is there stays until the new one is complete and its manifest written; until
    then that is beside it, in `.<name>.new`, so that for a while there must be room for both. One
    that was stopped is continued by the next start without `overwrite`; another with it begins
    again.

        work = Work(directory, settings, inputs={"folds.csv": path}, overwrite=args.overwrite)
        if work.finished():
            return
        …                                    # write files into work.directory
        work.finish(outputs, metrics={…})    # writes manifest.json, last

    settings: config sections and plain values that decide what comes out; keys that only set the
    speed are left out. inputs: files it is made from, by name. main: False in all but one of the
    processes of a launch; that one holds the directory's lock from here to the end of the work,
    or of the process. shared: no lock, several commands may work on the directory together.
    Errors: UserError when an input is damaged, or another process works on the directory.
    """

    def __init__(
        self,
        directory: Path,
        settings: BaseModel | dict,
        inputs: dict[str, Path],
        *,
        overwrite: bool = False,
        redo_on_new_inputs: bool = True,
        main: bool = True,
        shared: bool = False,
        beside: str = "copy the config to a new name",
    ):
        self.place = self.directory = Path(directory)
        self.new = replacement(self.place)
        self.main = main
        if main and not shared:
            own(self.place)
            self._put_in_place()  # had its process been killed before that
        replaces = overwrite and self.place.is_dir()  # at once: others begin to write soon
        self.settings = plain(settings, volatile=False)
        self.defaults = flatten(defaults_like(settings))
        self.inputs = {name: sha256(checked(path)) for name, path in sorted(inputs.items())}
        self.redo_on_new_inputs = redo_on_new_inputs
        self.beside = beside
        self.began, self.cpu = time.monotonic(), cpu_seconds()  # a clock may be set back
        if overwrite and main and self.new.is_dir():
            shutil.rmtree(self.new)
        if replaces or self.new.is_dir():
            self.directory = self.new
            self.beside = f"remove {self.new} to keep {self.place} as it is"

    def manifest(self) -> dict:
        needs = dict.fromkeys(("settings", "inputs", "outputs", "metrics"), dict)
        path = self.directory / MANIFEST
        manifest = read_json(path, needs)
        if outside := [name for name in manifest["outputs"] if not _is_inside(name)]:
            raise UserError(
                f"{path}: its outputs {some(outside)} are no files in {self.directory}; it was "
                "damaged or edited. Delete it and run the script that writes it again."
            )
        return manifest

    def finished(self, *, wanted: Iterable[str] = ()) -> bool:
        """True: nothing to do. False: start or continue. Only the main process speaks and deletes.

        wanted: outputs that these settings ask for, and that earlier work may have gone without.
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
        if new := [name for name in wanted if name not in manifest["outputs"]]:
            if self.main:
                cli.say(f"{self.directory}: finished without {some(new)}; making what is missing")
                path.unlink()
            return False
        changed = self._changed(manifest["inputs"])
        lost = [name for name in manifest["outputs"] if not self._intact(name, manifest)]
        if changed or lost:
            if self.main:
                cli.say(f"{self.directory}: {some(changed or lost)} changed since; doing it again")
                path.unlink()
                for name in lost:  # or it would be taken for work that is done already
                    (self.directory / name).unlink(missing_ok=True)
            return False
        if self.main:
            cli.say(f"{self.directory}: finished already, skipped")
        self.release()
        return True

    def release(self) -> None:
        """Let others work on the directory."""
        if self.main:
            let_go(self.place)

    def _put_in_place(self) -> None:
        """What is new and complete, instead of what it replaces."""
        if (self.new / MANIFEST).is_file():
            if self.place.is_dir():
                (self.place / MANIFEST).unlink(missing_ok=True)  # first: it is no longer whole
                shutil.rmtree(self.place)
            self.new.rename(self.place)
            self.directory = self.place

    def _intact(self, name: str, manifest: dict) -> bool:
        path = self.directory / name
        return path.is_file() and sha256(path) == manifest["outputs"][name]

    def _changed(self, found: dict[str, str]) -> list[str]:
        names = self.inputs.keys() | found.keys()
        return sorted(name for name in names if self.inputs.get(name) != found.get(name))

    def check_inputs(self, found: dict[str, str], origin: Path) -> None:
        """Errors: UserError that names the inputs that are not the ones `origin` was made from."""
        if changed := self._changed(found):
            raise UserError(
                f"{origin}: made from another {some(changed)} than the one there now. "
                f"Run again with --overwrite to replace it, or {self.beside}."
            )

    def check_settings(self, found: dict, origin: Path) -> None:
        """Errors: UserError that names the keys that differ between `found` and these settings.

        A key that did not exist when `found` was written counts as its default.
        """
        old, new = flatten(upgraded(found)), flatten(self.settings)
        old |= {k: self.defaults[k] for k in new.keys() - old.keys() if k in self.defaults}
        keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        if keys:
            lines = [f"  {k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in keys[:12]]
            raise UserError(
                f"{origin}: made with another config; what differs:\n"
                + "\n".join(lines)
                + f"\nRun again with --overwrite to replace it, or {self.beside}."
            )

    def finish(self, outputs: Iterable[str], metrics: dict | None = None, **facts) -> None:
        """Write the manifest, and replace what is to be replaced: `directory` may be another then.

        outputs: names of files in the directory · facts: go in as given
        """
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
                "seconds": round(time.monotonic() - self.began, 1),
                "cpu_seconds": round(cpu_seconds() - self.cpu, 1),
                "metrics": metrics or {},
                **facts,
            },
        )
        self._put_in_place()
        self.release()


def replacement(directory: Path) -> Path:
    """Where what is to replace a directory is made."""
    return directory.with_name(f".{directory.name}.new")


def made(directory: Path, name: str) -> list[Path]:
    """Files `name` of the directories in `directory`, sorted: of what is in its place, and not of
    what is to replace it one day."""
    return sorted(directory.glob(f"[!.]*/{name}"))


def settled(directory: Path) -> bool:
    """Whether it is finished, and nothing that was begun is to replace it."""
    return (directory / MANIFEST).is_file() and not replacement(directory).is_dir()


def checked(path: Path) -> Path:
    """`path`, if its bytes are still those of which its manifest has the sha256.

    The manifest is the one beside the file, or above it for names such as figures/x.png. Left alone
    is what no manifest lists: unfinished work, caches, and all that is not below `runs`.
    Errors: UserError that names the file, and the command that makes it again.
    """
    path = Path(path)
    if RUNS not in path.parents or not path.is_file():
        return path
    above = (p / MANIFEST for p in path.parents[:-2])  # not in `runs` itself, nor above it
    manifest = next((p for p in above if p.is_file()), None)
    if manifest is None:
        return path
    facts, name = read_json(manifest), path.relative_to(manifest.parent).as_posix()
    expected = facts.get("outputs", {}).get(name)
    if expected is None or expected == (found := sha256(path)):
        return path
    words = [word for word in facts.get("argv", []) if word != "--overwrite"]
    command = f"`python {shlex.join(words)}`" if words else "the script that made it"
    raise UserError(
        f"{path}: damaged, or edited since it was made: its sha256 is {found[:12]}…, but "
        f"{manifest} has {expected[:12]}…. Bring the file back, or run {command} again, which "
        f"makes it anew. To keep an edit made on purpose, take {name!r} out of the outputs in "
        f"{manifest}, and make again what was made from the old file."
    )


def require(path: Path, script: str) -> Path:
    """`path`, or an error that says which script makes it."""
    if not Path(path).exists():
        raise UserError(f"{path} is missing. Run `python {script}` with the same --config first.")
    return Path(path)


def cpu_seconds() -> float:
    """Seconds of all cores that this process and its finished children have used."""
    return sum(os.times()[:4])


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


def _is_inside(name: str) -> bool:
    """Whether a name can be that of a file in the directory it is looked for in."""
    path = PurePosixPath(name)
    return (
        bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
    )


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
