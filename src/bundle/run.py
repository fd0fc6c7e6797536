"""In a bundle: 05 and 06 on a directory of hidden test images. No network, nothing written to the
bundle, which may be on a read-only disk."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from src import cli
from src.artifacts.files import read_json, read_table, sha256, write_json, write_table
from src.artifacts.mirror import mirror
from src.artifacts.work import MANIFEST
from src.config.read import load_config
from src.errors import UserError
from src.prepare.folder import read_test
from src.prepare.scan import FACTS, clean_up, scan_images
from src.prepare.sources import Asked

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}


def main(bundle: Path) -> None:
    parser = argparse.ArgumentParser(description="05 and 06 offline on hidden test images")
    add = parser.add_argument
    add("--images", type=Path, required=True, help="directory of the test images")
    add("--sample", type=Path, help="the sample submission: ids, their order and the format")
    add("--out", type=Path, default=Path("submission.csv"), help="default: submission.csv")
    add("--work", type=Path, default=Path("bundle_work"), help="a directory that may be written")
    args = parser.parse_args()
    cli.run(lambda: predict(bundle, args.images, args.sample, args.out, args.work))


def predict(bundle: Path, images: Path, sample: Path | None, out: Path, work: Path) -> None:
    """Write the submission `out`. Errors: UserError for ids without an image, images that cannot
    be read, or when 05 or 06 stops."""
    images, out, work = images.absolute(), out.absolute(), work.absolute()
    sample = sample and sample.absolute()
    facts = read_json(bundle / "bundle.json", {"dataset": str, "networks": dict, "folds": list})
    shutil.rmtree(work, ignore_errors=True)
    mirror(bundle, work, without=(bundle / "code", bundle / "wheels"))
    os.chdir(work)  # as paths in configs are relative to it
    configs = [f"configs/{experiment}.yaml" for experiment in facts["networks"]]
    _list(Path("runs") / facts["dataset"] / "folds", configs[0], images, sample)
    for config, networks in zip(configs, facts["networks"].values(), strict=True):
        _script(bundle, "05_predict.py", "--config", config, "--folds", *networks)
    folds = ["--folds", *facts["folds"]] if facts["folds"] else []
    _script(bundle, "06_ensemble.py", "--config", *configs, "--out", str(out), *folds)


def _list(folds: Path, config: str, images: Path, sample: Path | None) -> None:
    """test.csv of these images, as 01 would have written it, in the place of the one of then."""
    settings, ids = load_config(config), None
    data = settings.data
    if sample is not None:
        column = settings.submission.id_column or list(read_table(sample, rows=1))[0]
        ids = read_table(sample, only=[column])[column].drop_duplicates().tolist()
    test, notes = read_test(images, Asked(sample, ids))
    for note in notes:
        cli.say(f"note: {note}")
    found = scan_images(test["path"].tolist(), folds, data)
    if len(bad := found[found["problem"] != ""]):
        first = bad.iloc[0]
        raise UserError(f"{len(bad)} images cannot be read: {first['source']}: {first['problem']}")
    test[["path", *FACTS]] = found[["path", *FACTS]]
    write_table(folds / "test.csv", test)
    clean_up(folds, data)
    manifest = read_json(folds / MANIFEST)
    manifest["outputs"] |= {"test.csv": sha256(folds / "test.csv")}
    manifest |= {"sample_submission": sample and sample.as_posix(), "solution": None}
    write_json(folds / MANIFEST, manifest)


def _script(bundle: Path, name: str, *arguments: str) -> None:
    command = [sys.executable, str(bundle / "code" / name), *arguments]
    if subprocess.run(command, env=os.environ | OFFLINE).returncode:
        raise UserError(f"{name} stopped; what it said is above")
