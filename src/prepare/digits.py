"""Source `digits`: scikit-learn's 1,797 handwritten digits, written once as a `folder` source.

A small competition that needs no download: a 1:50 tail, class ids with gaps, a test split that is
taken before the tail is cut, a sample submission and a solution.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits

from src import cli
from src.artifacts.files import write_table
from src.artifacts.whole import half_made
from src.prepare.longtail import tail_counts

CLASSES = (  # class id and name of digits 0 … 9; gaps, and another order than the digits'
    ("4780", "zero"),
    ("17", "one"),
    ("203", "two"),
    ("5012", "three"),
    ("96", "four"),
    ("1338", "five"),
    ("2954", "six"),
    ("641", "seven"),
    ("3107", "eight"),
    ("88", "nine"),
)
TEST_SHARE, RATIO, SEED, SIDE = 0.3, 50, 0, 32


def write_digits(root: Path) -> None:
    """Write the competition to `root` unless it is there; never half of it."""
    if root.exists():
        return
    with half_made(root) as half:
        _write(half)
        os.rename(half, root)
    cli.say(f"{root}: written, scikit-learn's handwritten digits with a 1:{RATIO} tail")


def _write(root: Path) -> None:
    pixels, digit = load_digits(return_X_y=True)
    train, test = [], []
    for value in range(10):
        rows = np.random.default_rng([SEED, value]).permutation(np.flatnonzero(digit == value))
        cut = round(TEST_SHARE * len(rows))
        test.append(rows[:cut])
        train.append(rows[cut:])
    largest = min(len(rows) for rows in train)
    for value, count in enumerate(tail_counts("exp", largest, len(train), RATIO)):
        for row in train[value][:count]:
            _save(pixels[row], root / "train" / "_".join(CLASSES[value]) / f"{row:05d}.png")
    rows = np.sort(np.concatenate(test))
    for row in rows:
        _save(pixels[row], root / "test" / f"{row:05d}.png")
    ids = [f"{row:05d}" for row in rows]
    truth = [CLASSES[value][0] for value in digit[rows]]
    write_table(root / "solution.csv", pd.DataFrame({"image_id": ids, "class_id": truth}))
    sample = pd.DataFrame({"image_id": ids, "class_id": CLASSES[0][0]})
    write_table(root / "sample_submission.csv", sample)


def _save(pixels: np.ndarray, path: Path) -> None:
    """8 × 8 values 0 … 16 become a grey PNG of 32 × 32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((pixels.reshape(8, 8) * (255 / 16)).round().astype(np.uint8))
    image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
