"""`--dry-run`: what a script would do, where, and for how long. Nothing is written.

The script's own function runs in a shadow of the working directory (src/artifacts/shadow.py), so
that it refuses what it always refuses, into its main work, where some steps or passes are timed and
it is stopped (src/progress.py). What is left then is counted in units of that work.
"""

import argparse
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from src import cli
from src.artifacts.dataset import dataset_dir, fold_name, fold_of, load_dataset
from src.artifacts.files import read_table
from src.artifacts.shadow import shadow
from src.artifacts.work import MANIFEST, RUNS, made, replacement, settled
from src.config.names import STAGE1
from src.config.schema import Config
from src.errors import UserError
from src.progress import UPDATES, Probe, Reached, duration

MIB = 2**20
# units that are counted, see `units_left`; 06 takes seconds and runs to its end
MAIN = {"01": ("img",), "02": ("steps",), "03": ("img",), "04": ("heads",), "05": ("img",)}
UNITS = {"img": "images"}  # in words
READS = {
    "01": "{root}",
    "02": "{folds}/ and the images in it",
    "03": "{folds}/, {home}/stage1/ and the training images",
    "04": "{folds}/, {home}/stage1/ and stage2/",
    "05": "{folds}/, {home}/stage1/, stage2/ and posthoc/, and the test images",
    "06": "{folds}/, the out-of-fold and test logits of each experiment",
}


def would(
    stage: str,
    config: Config,
    args: argparse.Namespace,
    work: Callable[[], object],
    passes: int = 1,
) -> None:
    """Tell what `work`, the script of `stage` (01 … 06), would do. Errors: as of `work`.

    passes: views of each image that go through a network
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--dry-run: start it as one process, without torchrun or accelerate launch")
    written_first = stage == "01" and config.data.source in ("digits", "torchvision")
    if written_first and not Path(config.data.root).is_dir():
        cli.say(f"--dry-run: {config.data.root} would be written first, and then read")
        return
    with shadow(config.dataset, copies=stage != "01"):
        _tell(stage, config, args, work, passes)


def _tell(stage: str, config: Config, args: argparse.Namespace, work, passes: int) -> None:
    """As `would`, in the shadow."""
    experiment, folds = cli.experiments_of(args)[0], getattr(args, "folds", [])
    home = RUNS / config.dataset / experiment
    every = places(stage, config, home, folds)
    before = {p: settled(p) for p in every}
    reached = None
    with Probe(*MAIN.get(stage, ()), updates=1 if stage == "04" else UPDATES):
        try:
            work()
        except Reached as found:
            reached = found
    for path in before if args.overwrite else ():
        (path / "last.pt").unlink(missing_ok=True)  # nothing goes on; in the shadow alone
    left = [p for p in before if args.overwrite or not before[p] or not (p / MANIFEST).is_file()]
    if reached is None:  # it ran to its end; that is what is left of nothing, or of what is quick
        left = [p for p in before if args.overwrite or not before[p]]
    cli.say("\n--dry-run: nothing was written")
    for path in before:
        cli.say(f"  {path}: {state(path) if path in left else 'finished already'}")
    where = {"root": config.data.root, "folds": dataset_dir(config.dataset), "home": home}
    cli.say(f"reads:  {READS[stage].format(**where)}")
    cli.say(f"writes: {written(left, stage)}")
    cli.say(f"time:   {time_of(stage, config, reached, left, passes)}")
    cli.say(f"memory: {memory()}")


def places(stage: str, config: Config, home: Path, folds: list[str]) -> list[Path]:
    """Directories of the finished work, each with a manifest."""
    single = {"01": dataset_dir(config.dataset), "04": home / "posthoc", "05": home / "predict"}
    if stage in single:
        return [single[stage]]
    if stage == "06":
        return []
    data = load_dataset(config.dataset).choose(folds)
    names = [fold_name(k) for k in (data.folds if data.chosen is None else data.chosen)]
    if stage == "02":
        return [home / STAGE1 / name for name in names]
    there = [name for name in (*names, "full") if (home / STAGE1 / name / MANIFEST).is_file()]
    heads = [n for n in config.head_names if not n.startswith(STAGE1)]
    return [home / "stage2" / head / name for head in heads for name in dict.fromkeys(there)]


def state(path: Path) -> str:
    done = _epochs_done(path)
    return f"goes on after epoch {done}" if done else "is made"


def written(left: list[Path], stage: str) -> str:
    """How many bytes are there of those left: of what was made while measuring, or of a finished
    one beside it."""
    if stage == "06":
        return f"{_size(_made())} in {RUNS}/"
    if not left:
        return "nothing"
    free = f"{_size(shutil.disk_usage(RUNS).free)} are free"
    beside = next(
        (p for p in sorted(left[0].parent.glob("fold*")) if (p / MANIFEST).is_file()), None
    )
    made = sum(p.stat().st_size for p in beside.iterdir()) if beside else _made()
    made = 0 if stage == "01" else made  # of few images yet
    what = f"{left[0]}" + (f" and {len(left) - 1} more" if len(left) > 1 else "")
    size = f"about {_size(made)} each" if made else "size not known before the first"
    return f"{what}, {size}; {free}"


def _made() -> int:
    """Bytes of files below runs/ that are no links."""
    files = (p for p in RUNS.rglob("*") if p.is_file() and not p.is_symlink())
    return sum(p.stat().st_size for p in files if p.suffix != ".lock")


def _size(number: float) -> str:
    if number < MIB:
        return f"{number / 1024:.0f} KiB"
    return f"{number / MIB:.1f} MiB" if number < 1024 * MIB else f"{number / MIB / 1024:.1f} GiB"


def time_of(
    stage: str, config: Config, reached: Reached | None, left: list[Path], passes: int
) -> str:
    """What is left in units of the main work, at the pace that was measured."""
    if reached is None:
        return "none, all is there" if not left and stage != "06" else "seconds; it ran as it would"
    unit = UNITS.get(reached.unit, reached.unit).removesuffix("s")
    pace = f"{duration(reached.each)} per {unit} (measured: {reached.label})"
    if reached.unit not in MAIN[stage]:
        whole = duration(reached.each * reached.total)
        return (
            f"first {whole} for {reached.total} {reached.unit}, {pace}; what follows is not known"
        )
    count, how = units_left(stage, config, reached, left, passes)
    return f"about {duration(count * reached.each)}: {how}, {pace}"


def units_left(
    stage: str, config: Config, reached: Reached, left: list[Path], passes: int
) -> tuple[int, str]:
    """How many, and in words."""
    if stage in ("01", "04"):
        return reached.total, f"{reached.total} {UNITS.get(reached.unit, reached.unit)}"
    data = load_dataset(config.dataset)
    if stage == "02":
        epochs = sum(config.train.epochs - _epochs_done(path) for path in left)
        how = f"{epochs} epochs in all of {reached.total} steps, validations not counted"
        return epochs * reached.total, how
    if stage == "03":
        networks, fold = {path.name for path in left}, data.images["fold"]
        images = sum(int((fold != fold_of(Path(name))).sum()) for name in networks)
        more = ", heads not counted"
    else:
        stage1 = RUNS / config.dataset / left[0].parent.name / STAGE1
        networks = [path.parent.name for path in made(stage1, MANIFEST)]
        images, more = len(data.test) * len(networks), ""
    how = f"{images} images in all of {len(networks)} networks, in {passes} views at most{more}"
    return images * passes, how


def _epochs_done(path: Path) -> int:
    """Of a training that was stopped."""
    path = replacement(path) if replacement(path).is_dir() else path
    stopped = (path / "last.pt").is_symlink() and (path / "metrics.csv").is_file()
    return len(read_table(path / "metrics.csv")) if stopped else 0


def memory() -> str:
    """The most that was taken while measuring."""
    unit = 1 if sys.platform == "darwin" else 1024
    text = f"{_size(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)} of this process"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        text += f" and {_size(torch.cuda.max_memory_allocated())} of the GPU"
    return f"{text}, at most, while measuring"
