"""Test-time augmentation as a list of views, and the files of those that are kept."""

import os
import shutil
from itertools import product
from pathlib import Path

from src.artifacts.files import read_json, write_json
from src.artifacts.work import digest
from src.config.predict import TTA
from src.data.transforms import View

CENTRE = (0.5, 0.5)
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))


def tta_views(tta: TTA) -> list[View]:
    """Scales × crops × flips × turns; the first is the evaluation view if 1.0 is the first scale.

    A quarter turn of an upside-down image is one of its mirror image, so where images are mirrored
    left-right and turned, upside-down ones are among them already and come once.
    """
    crops = (CENTRE, *CORNERS) if tta.crops > 1 else (CENTRE,)
    flips = (False, True) if tta.flip else (False,)
    vertical = (False, True) if tta.vertical and not (tta.flip and tta.turns) else (False,)
    turns = range(4 if tta.turns else 1)
    ways = product(tta.scales, crops, vertical, turns, flips)
    return [View(flip, crop, scale, up, turn) for scale, crop, up, turn, flip in ways]


def view_files(directory: Path, count: int) -> list[Path]:
    """Files of the views that predict.keep_views asks for, in the order of `tta_views`."""
    return [directory / f"view{i}.npz" for i in range(count)]


def keep_views(directory: Path, key: dict, cached: list[Path]) -> None:
    """Make `directory` the home of the views of `key` (weights, test images, views, as JSON).

    Views of another key are removed. Those that were done before views were to be kept, and lie in
    the cache, move in.
    """
    origin = directory / "made_from.json"
    if not origin.is_file() or digest(read_json(origin)) != digest(key):
        shutil.rmtree(directory, ignore_errors=True)
        write_json(origin, key)
    for path, kept in zip(cached, view_files(directory, len(cached)), strict=True):
        if path.is_file():
            os.replace(path, kept)
