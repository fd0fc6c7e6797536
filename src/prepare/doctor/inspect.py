"""01 --inspect: an unknown directory, zip or CSV → a config that 01 takes, each choice explained.

Reads only, but for the zip that it extracts. Looks into every directory and table and at a sample
of the images, so that its time does not grow with their number beyond listing them.
"""

import shlex
from pathlib import Path

import numpy as np

from src.artifacts.files import write_text
from src.config.read import parse_config
from src.config.yaml_text import load_yaml
from src.errors import UserError
from src.prepare.doctor import counts
from src.prepare.doctor.answer import answered
from src.prepare.doctor.choice import Choice, tree_of, yaml_of
from src.prepare.doctor.folders import by_folders
from src.prepare.doctor.listings import by_listings
from src.prepare.doctor.looks import data_choices, look
from src.prepare.doctor.survey import ARCHIVES, Survey, survey
from src.prepare.doctor.tables import by_tables, sheets_of
from src.prepare.doctor.unpack import unpacked
from src.prepare.sources import Source, portable

TABLES = (".csv", ".tsv")
LONG = 3600  # seconds of 02 on a CPU, from which on cheaper ways are named
GENERIC = ("archive", "data", "dataset", "files", "images", "input", "raw", "train", "training")


def inspect(
    path: str | Path, out: str | Path | None = None, overwrite: bool = False, probe: bool = False
) -> str:
    """Write a starting config to `out`, by default configs/<name>.yaml, for a probe
    configs/<name>_probe.yaml; returns what to print.

    probe: nothing is trained, see src/prepare/doctor/probe.py

    Errors: UserError for what is not there or cannot be told, with what was looked for and found;
    and for a config that exists, unless `overwrite`.
    """
    path = Path(path)
    name = _name(path)
    out = Path(out) if out else Path("configs") / f"{name}{'_probe' * probe}.yaml"
    _check_out(out, overwrite)
    from src.networks.cost import device  # slow to import: torch, timm

    found = survey(_directory(path))
    choices, images, seconds = choose(found, name, probe)
    text = yaml_of(choices, _head(path, out))
    parse_config(load_yaml(text, str(out)), str(out))  # a slip here is ours, and is named before
    write_text(out, text)
    unsure = sum("NOT SURE" in c.why for c in choices)
    more = f"; {unsure} choices are marked NOT SURE" if unsure else ""
    return (
        f"{images}\n\nwrote {out}: every choice says why{more}. Read it, then\n\n"
        f"  python 01_prepare_folds.py --config {shlex.quote(str(out))}"
        + (_cheaper(path, out, choices) if seconds > LONG and device() == "cpu" else "")
    )


def choose(found: Survey, name: str, probe: bool = False) -> tuple[list[Choice], str, float]:
    """All choices, a sentence or two about what is there, and the seconds that training takes."""
    from src.prepare.doctor.machine import network, training  # as slow
    from src.prepare.doctor.probe import probing

    settled, source = _settled(found, name)
    root = portable(found.root)
    per_class = source.train["class_id"].value_counts().to_numpy()
    if len(per_class) < 2:
        raise UserError(f"{root}: all images are of one class. Found\n{found}")
    looks = look([*source.train["path"], *source.test["path"]])
    model, section = network(looks)
    folds, metric = counts.folds(per_class), next(c.value for c in settled if c.key == "metric")
    if probe:
        more, train, cost = probing(section, looks)
        model, seconds = [*model, *more], 0.0
    else:
        train, cost, seconds = training(section, metric, np.asarray(per_class), folds.value, looks)
    settled += data_choices(looks, section.image_size)
    said = (
        f"{len(source.train)} training images of {len(per_class)} classes ({per_class.min()} … "
        f"{per_class.max()} each), {len(source.test)} test images\n{cost}"
    )
    return [*settled, *counts.bins(per_class), folds, *model, *train], said, seconds


def _settled(found: Survey, name: str) -> tuple[list[Choice], Source]:
    """What tables say, else a JSON or list that can be read, else folders."""
    passed: dict[str, str] = {}

    def answer(data: list[Choice]) -> tuple[list[Choice], Source]:
        root = portable(found.root)
        why = "the competition's files; 01 to 06 read them and never change them"
        data.insert(1, Choice("data.root", root, why))
        if Path(root).name != name:
            data.append(Choice("data.name", name, "the directory under runs/ for all that is made"))
        return answered(found, data)

    if sheets := sheets_of(found, passed):
        return answer(by_tables(found, sheets))
    if data := by_listings(found):
        try:
            return answer(data)
        except UserError as error:
            passed[tree_of(data)["data"]["train"]] = str(error)
    return answer(by_folders(found, passed))


def _cheaper(path: Path, out: Path, choices: list[Choice]) -> str:
    """What to begin with where 02 takes long."""
    written, looked_at = shlex.quote(str(out)), shlex.quote(str(path))
    said = "\n\nThat is long for a CPU. Cheaper is one fold (--folds 0, in 02 … 06)"
    ways = [f"  python 02_train_stage1.py --config {written} --folds 0"]
    if not any(c.key == "model.pretrained" and c.value is False for c in choices):
        probe = shlex.quote(str(out.with_stem(f"{out.stem}_probe")))
        said += ", or a probe, which trains heads alone"
        ways.append(f"  python 01_prepare_folds.py --inspect {looked_at} --probe --out {probe}")
    return "\n".join([f"{said}:\n", *ways])


def _directory(path: Path) -> Path:
    if path.is_dir():
        return path
    if path.suffix.lower() == ".zip" and path.is_file():
        return unpacked(path)
    if path.suffix.lower() in TABLES and path.is_file():
        return path.parent
    what = "neither a directory, zip nor table"
    if not path.exists():
        what = "no such file or directory"
    elif path.suffix.lower() in ARCHIVES:
        what = "an archive other than zip; extract it by hand, and inspect what comes of it"
    raise UserError(
        f"--inspect {path}: {what}; expected the competition's directory, the zip that it comes "
        "in, or a CSV or TSV beside its images"
    )


def _name(path: Path) -> str:
    """Of the dataset: what the file or directory is called, or the one above a name that says
    nothing."""
    whole = Path(portable(path))
    stem = whole.stem if path.is_file() else whole.name
    if path.is_file() and path.suffix.lower() in TABLES:
        stem = whole.parent.name
    parents = [p.name for p in whole.parents if p.name]
    while stem.lower() in GENERIC and parents:
        stem = parents.pop(0)
    return stem or "my_competition"


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out}: expected the name of a config, such as configs/mine.yaml")
    if out.exists() and not overwrite:
        raise UserError(
            f"{out} is there already, and a config is not replaced unless asked: name another with "
            "--out configs/NAME.yaml, or add --overwrite"
        )


def _head(path: Path, out: Path) -> str:
    return (
        f"A start for {path}, written by `python 01_prepare_folds.py --inspect`. The comment above "
        "a key says what it was chosen by; all other keys are in configs/folder_template.yaml.\n"
        f"01 … 06 with --config {out} make a submission."
    )
