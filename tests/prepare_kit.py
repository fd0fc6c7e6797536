"""Small competitions for the tests of 01: crops of scikit-learn's two photographs."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_sample_image

from src.config.read import parse_config

PHOTO = np.concatenate([load_sample_image("china.jpg"), load_sample_image("flower.jpg")])


def photo(number: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Another crop for every number, (width, height), with a little noise of its own."""
    rng = np.random.default_rng(number)
    top, left = rng.integers(0, PHOTO.shape[0] - 240), rng.integers(0, PHOTO.shape[1] - 240)
    crop = Image.fromarray(PHOTO[top : top + 200, left : left + 200]).resize(size)
    blobs = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size)
    return Image.blend(crop, blobs, 0.4)


def folder_source(root: Path, counts: dict[str, int], test: int = 4) -> Path:
    """train/<name>/a<i>.jpg for every class folder and test/t<i>.jpg, all different."""
    number = 0
    for name, count in counts.items():
        (root / "train" / name).mkdir(parents=True)
        for i in range(count):
            photo(number).save(root / "train" / name / f"a{i:03d}.jpg", quality=90)
            number += 1
    (root / "test").mkdir(parents=True)
    for i in range(test):
        photo(10_000 + i).save(root / "test" / f"t{i}.jpg", quality=90)
    return root


def config(root, **sections):
    """A config on `root` that reads images in the main process."""
    data = {"root": str(root), "workers": 0, **sections.pop("data", {})}
    folds = {"k": 3, **sections.pop("folds", {})}
    return parse_config({"data": data, "folds": folds, **sections})


def write_csv(path: Path, **columns) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False)
    return path
