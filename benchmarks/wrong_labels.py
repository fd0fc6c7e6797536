"""How many of the first suspects that the report shows are wrong labels that were planted.

    python benchmarks/wrong_labels.py
    python benchmarks/wrong_labels.py --no-pipeline  # seconds

scikit-learn's digits with a long tail; a share of the labels is replaced by another class. Out of
fold by logistic regression on the pixels (no network), or by 01 … 04 on a copy of the digits whose
images were moved to wrong folders. The table has the precision among the first 20, 50 and 100
and the share of the planted labels that is among all suspects.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/wrong_labels.py`

from benchmarks.results import RESULTS, markdown, provenance, write_section

ROOT = Path(__file__).parents[1]
COUNTS = np.array([170, 130, 100, 80, 60, 45, 35, 26, 20, 15])  # images of digit 0 … 9
SHARE = 0.1  # of the labels are wrong
FIRST = (20, 50, 100)


@dataclass(frozen=True)
class Planted:
    """true, given: labels [N] · wrong: where they differ · logits: [N, K], out of fold, of models
    that were trained on the given labels"""

    true: np.ndarray
    given: np.ndarray
    logits: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        return self.true != self.given


def planted(seed: int, share: float = SHARE) -> Planted:
    """Digits with a tail, of which a share has another label; five folds."""
    rng = np.random.default_rng(seed)
    pixels, digit = load_digits(return_X_y=True)
    rows = [rng.permutation(np.flatnonzero(digit == c))[:n] for c, n in enumerate(COUNTS)]
    rows = np.concatenate(rows)
    x, true = pixels[rows] / 16, digit[rows]
    given = misled(true, share, rng)
    logits = np.zeros((len(x), 10))
    for train, out in StratifiedKFold(5, shuffle=True, random_state=seed).split(x, given):
        model = LogisticRegression(C=0.1, max_iter=200).fit(x[train], given[train])
        logits[out] = model.predict_log_proba(x[out])
    return Planted(true, given, logits)


def misled(true: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The labels with a share of them replaced by another class, each as likely."""
    given = true.copy()
    rows = rng.choice(len(true), round(share * len(true)), replace=False)
    given[rows] = (true[rows] + rng.integers(1, 10, len(rows))) % 10
    return given


def measured(found: pd.Series, planted_in_all: int) -> dict[str, float]:
    """found: whether each suspect, in their order, is a planted one."""
    row = {f"of the first {n}": found[:n].mean() for n in FIRST}
    return row | {
        "suspects": len(found),
        "planted that are among them": found.sum() / planted_in_all,
    }


def by_regression(seed: int) -> dict[str, float]:
    from src.metrics import outcomes_of
    from src.report.stages import Scored
    from src.report.suspects import wrong_labels

    world = planted(seed)
    seen = outcomes_of(world.logits, world.given)
    ids = np.arange(len(world.given)).astype(str)
    stage = Scored(ids, world.given, seen, {}, seen.calibration(world.given))
    rows = wrong_labels(stage, 10)["row"].to_numpy()
    return measured(pd.Series(world.wrong[rows]), int(world.wrong.sum()))


def by_the_pipeline(seed: int, work: Path) -> dict[str, float]:
    """01 … 04 on the digits with moved files; the suspects of configs/digits.yaml."""
    from src.config.read import load_config
    from src.prepare.digits import write_digits
    from src.report.context import gather

    root, rng = work / "data/raw/digits_misled", np.random.default_rng(seed)
    if not root.is_dir():
        write_digits(root)
    files = sorted((root / "train").glob("*/*"))
    folders = sorted({f.parent.name for f in files})
    true = np.array([folders.index(f.parent.name) for f in files])
    moved = set()
    for file, label, given in zip(files, true, misled(true, SHARE, rng), strict=True):
        if label != given:
            target = root / "train" / folders[given] / f"moved_{file.name}"
            shutil.move(file, target)
            moved.add(target.relative_to(root / "train").with_suffix("").as_posix())
    config = ROOT / "configs/digits.yaml"
    keys = ["data.source=folder", f"data.root={root.relative_to(work)}"]
    for script in (
        "01_prepare_folds",
        "02_train_stage1",
        "03_train_stage2",
        "04_posthoc_calibrate",
    ):
        command = [sys.executable, ROOT / f"{script}.py", "--config", config, "--set", *keys]
        subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
    report = gather("digits_misled", ["digits"], [load_config(config, keys)])
    found = report.leader.suspects
    labels = found.loc[found["kind"] == "label", "image_id"]
    return measured(labels.isin(moved), len(moved))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--no-pipeline", action="store_true", help="regression alone")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args()
    about, out, home = provenance(), args.out.resolve(), Path.cwd()
    rows = [{"by": f"regression, seed {seed}"} | by_regression(seed) for seed in args.seeds]
    if not args.no_pipeline:
        with tempfile.TemporaryDirectory() as work:
            os.chdir(work)
            rows.append({"by": "01 … 04, seed 0"} | by_the_pipeline(0, Path(".")))
            os.chdir(home)
    body = f"{about}\n\nDigits with a tail, {SHARE:.0%} of the labels wrong: the share of planted "
    body += f"ones among the first suspects, and among all.\n\n{markdown(rows)}"
    print(write_section("wrong labels", "Planted wrong labels", body, out))


if __name__ == "__main__":
    main()
