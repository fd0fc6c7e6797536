"""A directory in which a stage runs again: links to all it reads, and nothing of what it made."""

import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from src import cli
from src.artifacts.files import read_json, sha256, write_text
from src.artifacts.mirror import mirror
from src.artifacts.work import MANIFEST
from src.errors import UserError, some
from src.rerun.made import NEEDS, SCRIPTS, SUBMISSION, Made

CODE = Path(__file__).parents[2]
CACHES = ("features",)  # made again, as they are no inputs
WHOLE = ("images",)  # as many files as there are images: linked as one


def rerun(made: Made, into: Path) -> Path:
    """Run the stage in a directory below `into`; returns its new manifest.

    Errors: UserError when inputs are not those that the manifest names, or the script refuses.
    """
    _check_inputs(made)
    name = "-".join(made.place[:-1])
    if made.stage == SUBMISSION:  # of which one directory has many
        name += "-" + made.manifest.name.removesuffix(f".{MANIFEST}")
    space = into.absolute() / name
    shutil.rmtree(space, ignore_errors=True)
    _mirror(made, space)
    configs = []
    for name, tree in made.trees().items():
        path = space / "configs_again" / f"{name}.yaml"
        configs.append(str(write_text(path, yaml.safe_dump(tree, allow_unicode=True))))
    script = SCRIPTS[made.stage]
    cli.say(f"{made.manifest}: {script} runs again in {space}")
    command = [sys.executable, str(CODE / script), "--config", *configs, *made.arguments]
    done = subprocess.run(command, cwd=space)
    new = space / made.directory / made.manifest.name
    if done.returncode or not new.is_file():
        raise UserError(f"{space}: {script} did not finish; what it said is above")
    now = read_json(new, NEEDS)["inputs"]
    then = made.facts["inputs"]
    if changed := sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k)):
        cli.say(f"{made.manifest}: made from other inputs than there are now: {some(changed)}")
    return new


def _check_inputs(made: Made) -> None:
    """Before hours are spent: those of the inputs whose file is told by its name."""
    runs = made.root / "runs" / made.dataset
    homes = [runs / "folds", runs, *(runs / name for name in made.experiments)]
    if made.stage == "stage2":
        homes.append(homes[2] / "stage1" / made.place[4])
    changed = []
    for name, digest in made.facts["inputs"].items():
        files = [home / name for home in homes if (home / name).is_file()]
        if files and all(sha256(path) != digest for path in files):
            changed.append(str(files[0]))
    if changed:
        raise UserError(
            f"{made.manifest}: was made from other files than there are now: {some(changed)}. "
            "Bring them back, or make it again with the script itself."
        )


def _mirror(made: Made, space: Path) -> None:
    """What lies beside `runs` is linked, and other data sets; of this one the files, each, in
    directories of its own, so that whatever a stage writes is written here."""
    runs = space / "runs"
    (runs / made.dataset).mkdir(parents=True)
    for path in made.root.iterdir():
        if path.name != "runs" and not path.name.startswith("."):
            (space / path.name).symlink_to(path)
    for path in (made.root / "runs").iterdir():
        if path.name != made.dataset and path.is_dir() and not path.name.startswith("."):
            (runs / path.name).symlink_to(path)
    own = made.root / made.directory
    if made.stage != "folds":  # which begins with nothing
        source = made.root / "runs" / made.dataset
        mirror(source, runs / made.dataset, without=(own, *CACHES), whole=WHOLE)
