"""The competition that a stranger was handed (benchmarks/first_hour.md), and a probe of it.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps
    python benchmarks/stamps.py stamps               # zip, --inspect --probe, 01 to 06, score
    python benchmarks/stamps.py stamps --only-zip    # data/raw/stamps-2026.zip alone

The pictures of Tux Paint, in categories of 6 and more: directories by the first letters of ids
without ending, a column that is not the class, classes with a slash, a sample submission, no
solution. Seconds are those that cores were busy, with one thread. The labels of the test images
stay here, and score the submission once it is there. The edges are why the doctor has the whole
image seen: how many of a picture's outermost pixels are one colour, here and in birds_lt.
"""

import argparse
import hashlib
import os
import random
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/stamps.py`

from benchmarks.results import RESULTS, markdown, provenance, write_section
from src import cli
from src.artifacts.files import read_json, read_table
from src.data.images import load_image
from src.errors import UserError
from src.prepare.doctor.looks import EVEN, even_edge

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "data" / "weights"
BIRDS = ROOT / "data" / "raw" / "birds_lt"
NAME, FEWEST, TEST_SHARE, SEED = "stamps-2026", 6, 0.3, 7
SCRIPTS = sorted(path.name for path in ROOT.glob("0[1-6]_*.py"))
LOOKED_AT = 60  # images of each set, for the edges


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stamps", type=Path, help="where the package was unpacked")
    parser.add_argument("--only-zip", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args(argv)
    train, test = competition(args.stamps)
    if args.only_zip:
        print(packed(train, test, ROOT / "data" / "raw" / f"{NAME}.zip"))
        return
    with tempfile.TemporaryDirectory() as home:
        rows, found = probed(train, test, Path(home))
    edges = {"stamps": [*train, *test], "birds_lt": sorted(BIRDS.rglob("*.jpg"))}
    body = (
        f"{provenance()}\n\n{len(train)} training and {len(test)} test images of "
        f"{len(set(train.values()))} classes, with the config that `--inspect --probe` writes.\n\n"
        f"{markdown(rows, 1)}\n\n{markdown([found])}\n\nShare of the outermost pixels that are "
        f"nearly one colour:\n\n{markdown([edge_row(n, p) for n, p in edges.items() if p], 2)}"
    )
    print(write_section("stamps", "A stranger's competition, probed", body, args.out))


def competition(package: Path) -> tuple[dict[Path, str], dict[Path, str]]:
    """Pictures and their categories, for training and for the test. Errors: UserError."""
    root, of = package / "usr" / "share" / "tuxpaint" / "stamps", {}
    for path in sorted(root.rglob("*.png")):
        of.setdefault("/".join(path.relative_to(root).parts[:-1][:2]), []).append(path)
    of = {name: paths for name, paths in of.items() if len(paths) >= FEWEST}
    if not of:
        raise UserError(f"{root}: no pictures; the docstring says how to unpack the package")
    rng, train, test = random.Random(SEED), {}, {}
    for name, paths in sorted(of.items()):
        rng.shuffle(paths)
        held = max(2, round(len(paths) * TEST_SHARE))
        test |= dict.fromkeys(paths[:held], name)
        train |= dict.fromkeys(paths[held:], name)
    return train, test


def stamp_id(path: Path) -> str:
    """Of the name alone, so that it is the same wherever the package lies."""
    parts = "/".join(path.parts[path.parts.index("stamps", path.parts.index("tuxpaint")) :])
    return f"st_{hashlib.md5(parts.encode()).hexdigest()[:10]}"


def packed(train: dict[Path, str], test: dict[Path, str], path: Path) -> Path:
    rng = random.Random(SEED)
    table = pd.DataFrame({"stamp_id": map(stamp_id, train)})
    table["collection"] = [rng.choice(("tuxpaint", "gallery", "misc")) for _ in train]
    table["category"] = list(train.values())
    sample = pd.DataFrame({"stamp_id": map(stamp_id, test), "category": "animals/mammals"})
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, rows in (("train", table), ("sample_submission", sample)):
            text = rows.sort_values("stamp_id").to_csv(index=False)
            archive.writestr(f"stamps/{name}.csv", text)
        for part, pictures in (("train", train), ("test", test)):
            for picture in pictures:
                name = stamp_id(picture)
                archive.write(picture, f"stamps/{part}_images/{name[3:5]}/{name}.png")
    return path


def probed(train: dict, test: dict, home: Path) -> tuple[list[dict], dict]:
    """Core seconds of each command, and the scores."""
    zipped = packed(train, test, home / "data" / "raw" / f"{NAME}.zip")
    (home / "configs").mkdir()
    if WEIGHTS.is_dir():
        (home / "data" / "weights").symlink_to(WEIGHTS.resolve())
    inspect = ["--inspect", str(zipped.relative_to(home)), "--probe", "--out", "configs/probe.yaml"]
    commands = [[SCRIPTS[0], *inspect], *([s, "--config", "configs/probe.yaml"] for s in SCRIPTS)]
    rows = [{"command": " ".join(c[:2]), "core seconds": taken(c, home)} for c in commands]
    submissions = home / "runs" / NAME / "submissions"
    manifest = read_json(submissions / "probe.manifest.json")
    told, answers = manifest["expected"], read_table(submissions / "probe.csv")
    truth = {stamp_id(path): name for path, name in test.items()}
    score = balanced_accuracy_score(answers["stamp_id"].map(truth), answers["category"])
    return rows, {
        "balanced accuracy": "",
        "out of fold": told["oof"],
        "expected": f"{told['value']:.3f} ({told['low']:.3f} to {told['high']:.3f})",
        "test": float(score),
    }


def taken(command: list[str], home: Path) -> float:
    """Seconds of a core. Errors: UserError with what the command said, where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:]], cwd=home, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {done.stdout[-400:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{' '.join(command)}: done", flush=True)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def edge_row(name: str, paths: list[Path]) -> dict:
    shares = np.array([even_edge(load_image(p)) for p in paths[:: max(1, len(paths) // LOOKED_AT)]])
    return {
        "images": name,
        "looked at": len(shares),
        "median": float(np.median(shares)),
        f"above {EVEN}": float((shares > EVEN).mean()),
    }


if __name__ == "__main__":
    cli.run(main)
