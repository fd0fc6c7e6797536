"""The stranger's competition: every picture once, nothing of the test in the zip but its images."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from benchmarks import stamps
from src.errors import UserError


@pytest.fixture
def package(tmp_path):
    root = tmp_path / "package" / "usr" / "share" / "tuxpaint" / "stamps"
    for name, count in {"animals/birds": 10, "food/nuts": 7, "rare/one": 5}.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((9, 12, 3), 255, np.uint8)
            pixels[3:6, 4:8] = 20 * i
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return tmp_path / "package"


def test_the_zip_has_each_picture_once_and_no_label_of_the_test(package, tmp_path):
    train, test = stamps.competition(package)
    assert (len(train), len(test)) == (12, 5) and not train.keys() & test.keys()
    assert set(train.values()) == set(test.values()) == {"animals/birds", "food/nuts"}
    path = stamps.packed(train, test, tmp_path / "x" / "stamps.zip")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        told = archive.read("stamps/train.csv").decode().split()[1:]
        asked = archive.read("stamps/sample_submission.csv").decode().split()[1:]
    assert len(names) == len(set(names)) == 2 + 12 + 5
    ids = {stamps.stamp_id(path): name for path, name in train.items()}
    assert {line.split(",")[0]: line.split(",")[2] for line in told} == ids
    assert {line.split(",")[0] for line in asked} == {stamps.stamp_id(p) for p in test}
    assert {line.split(",")[1] for line in asked} == {"animals/mammals"}
    assert stamps.competition(package) == (train, test)
    with pytest.raises(UserError, match="no pictures"):
        stamps.competition(tmp_path)


def test_edges_of_objects_that_are_cut_out_are_one_colour(package):
    row = stamps.edge_row("all", list(stamps.competition(package)[0]))
    assert row["median"] == 1 and row[f"above {stamps.EVEN}"] == 1 and row["looked at"] == 12
