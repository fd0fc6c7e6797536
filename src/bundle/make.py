"""A directory with everything that 05 and 06 need, to run where there is no network.

predict.py  notebook.ipynb     05 and 06 on a directory of hidden test images
wheels.txt                     exact versions, for `pip download`
bundle.json                    experiments, their networks, folds
code/                          05, 06, src
configs/<experiment>.yaml      as resolved
runs/<dataset>/                folds without images; of each experiment weights, heads,
                               out-of-fold predictions and what 04 fitted
data/…                         files that keys name: a frozen body, a target prior, a metric
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from src.artifacts.files import read_json, write_json, write_text
from src.artifacts.mirror import mirror
from src.artifacts.target_prior import csv_of
from src.artifacts.tensors import AGAIN, read_shapes
from src.artifacts.work import MANIFEST, RUNS, made, require
from src.bundle.wheels import wheels
from src.config.metric import own_files
from src.config.schema import Config
from src.config.tree import dump_config
from src.errors import UserError

CODE = Path(__file__).parents[2]
SCRIPTS = ("05_predict.py", "06_ensemble.py")
FACTS = "bundle.json"
# of an experiment or the folds: what is made again, or what training alone needs
LEFT_OUT = (
    "features",
    "predict",
    "tracker",
    "studies",
    "last.pt",
    "curves.png",
    "images",
    "figures",
)
PREDICT = '''"""Submission for a directory of hidden test images, offline.

    python predict.py --images DIR --sample sample_submission.csv --out submission.csv
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "code"))

from src.bundle.run import main  # noqa: E402

if __name__ == "__main__":
    main(HERE)
'''
CELL = """import subprocess, sys
from pathlib import Path

BUNDLE = Path("/kaggle/input/bundle")             # this directory
IMAGES = Path("/kaggle/input/competition/test")   # hidden when the notebook is scored
SAMPLE = IMAGES.parent / "sample_submission.csv"

wheels = BUNDLE / "wheels"                        # pip download -r wheels.txt -d wheels
if wheels.is_dir():
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(wheels)]
    subprocess.run([*pip, "-r", str(BUNDLE / "wheels.txt")], check=True)
command = [sys.executable, str(BUNDLE / "predict.py"), "--images", str(IMAGES)]
command += ["--sample", str(SAMPLE)] if SAMPLE.is_file() else []
subprocess.run([*command, "--out", "submission.csv"], check=True)
"""


def make_bundle(configs: list[Config], experiments: list[str], folds: list[str], out: Path) -> Path:
    """Write the directory, or the .zip, `out`; returns it.

    configs, experiments, folds: as 06 has them, after 05. Errors: UserError when `out` is there
    already, or a network needs what cannot come along.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; remove it, or give --bundle another name")
    for config, experiment in zip(configs, experiments, strict=True):
        _check(config, experiment)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        home = Path(temporary) / out.stem
        _fill(home, configs, experiments, folds)
        if out.suffix == ".zip":
            made = shutil.make_archive(str(Path(temporary) / "made"), "zip", home)
            Path(made).rename(out)
        else:
            home.rename(out)
    return out


def _fill(home: Path, configs: list[Config], experiments: list[str], folds: list[str]) -> None:
    dataset = configs[0].dataset
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(CODE / "src", home / "code" / "src", ignore=ignored)
    for script in SCRIPTS:
        shutil.copy(CODE / script, home / "code" / script)
    networks = {}
    for config, experiment in zip(configs, experiments, strict=True):
        manifest = require(RUNS / dataset / experiment / "predict" / MANIFEST, SCRIPTS[0])
        predicted = read_json(manifest, {"settings": dict, "networks": list})
        tree = dump_config(config)
        tree["predict"] |= predicted["settings"] | {"evidence": 0, "keep_networks": []}
        tree["predict"]["tta"] |= {"measure": False}  # on images that do not come along
        text = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)
        write_text(home / "configs" / f"{experiment}.yaml", text)
        networks[experiment] = [name.removeprefix("fold") for name in predicted["networks"]]
        own = Path("runs", dataset, experiment)
        mirror(RUNS / dataset / experiment, home / own, without=LEFT_OUT, put=shutil.copy)
    mirror(
        RUNS / dataset / "folds", home / "runs" / dataset / "folds", without=LEFT_OUT,
        put=shutil.copy,
    )  # fmt: skip
    for path in {p for c, e in zip(configs, experiments, strict=True) for p in _named(c, e)}:
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, home / path)
    write_json(home / FACTS, {"dataset": dataset, "networks": networks, "folds": folds})
    write_text(home / "wheels.txt", "".join(f"{line}\n" for line in wheels()))
    write_text(home / "predict.py", PREDICT)
    write_text(home / "notebook.ipynb", json.dumps(_notebook(), indent=1) + "\n")


def _check(config: Config, experiment: str) -> None:
    """Errors: UserError for what a directory of images does not have, or no file here is."""
    if config.data.columns:
        raise UserError(
            f"--bundle: {experiment} reads data.columns ({', '.join(config.data.columns)}), which "
            "a directory of hidden images does not have"
        )
    if config.predict.tta.weights == "fitted":
        raise UserError(
            f"--bundle: {experiment} has predict.tta.weights: fitted, which are fitted on training "
            "images, and those do not come along; set them to equal, and run 05 and 06 again"
        )
    for path in _named(config, experiment):
        if path.is_absolute() or ".." in path.parts or not path.is_file():
            raise UserError(
                f"--bundle: {experiment} needs {path}, which cannot come along. Expected a file "
                "below the working directory, named relative to it: for a frozen body, set "
                "model.pretrained to such a file and train with that"
            )


def _named(config: Config, experiment: str) -> Iterator[Path]:
    """Files that are named by keys, or by weights that hold what was trained alone."""
    yield from own_files(config.metric).values()
    if path := csv_of(config):
        yield path
    stage1 = RUNS / config.dataset / experiment / "stage1"
    for weights in made(stage1, "weights.safetensors"):
        about, _ = read_shapes(weights, AGAIN)
        if frozen := (about or {}).get("frozen"):
            yield Path(frozen["source"])


def _notebook() -> dict:
    cell = {"cell_type": "code", "execution_count": None, "id": "predict", "metadata": {}}
    cell |= {"outputs": [], "source": CELL.splitlines(keepends=True)}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
