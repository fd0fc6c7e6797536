"""Source `torchvision`: one of torchvision's data sets, written once as a `folder` source.

torchvision reads (or downloads) its files in root/torchvision; images become PNG files in
root/train/<label>_<class name>/ and root/test/, beside a solution. Class ids are the labels.
"""

import os
import shutil
from pathlib import Path

import pandas as pd

from src import cli
from src.artifacts.files import write_table
from src.artifacts.whole import half_made
from src.config.data import Data
from src.errors import UserError
from src.progress import each

FLAG = ({"train": True}, {"train": False})
SPLIT = ({"split": "train"}, {"split": "test"})
TRAINVAL = ({"split": "trainval"}, {"split": "test"})
PARTS = {  # what torchvision calls the training and the test part
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST"), FLAG),
    **dict.fromkeys(("SVHN", "STL10", "GTSRB", "Food101", "DTD", "Flowers102"), SPLIT),
    **dict.fromkeys(("FGVCAircraft", "OxfordIIITPet"), TRAINVAL),
    "StanfordCars": SPLIT,
}


def write_torchvision(data: Data) -> None:
    """Write train/, test/ and solution.csv to root unless train/ is there; never half of it.

    Errors: UserError when torchvision does not find its files, or finds damaged ones.
    """
    root = Path(data.root)
    if (root / "train").exists():
        return
    train, test = (_load(data, root / "torchvision", part) for part in PARTS[data.torchvision])
    names = _class_names(train)
    with half_made(root / "train") as half:
        _write_images(train, half / "train", names)
        labels = _write_images(test, half / "test", None)
        truth = {"image_id": [f"{row:06d}" for row in range(len(labels))], "class_id": labels}
        write_table(half / "solution.csv", pd.DataFrame(truth))
        for name in ("solution.csv", "test", "train"):  # train last: it says that all is there
            shutil.rmtree(root / name, ignore_errors=True)
            os.rename(half / name, root / name)
    cli.say(
        f"{root}: written, {len(train)} train and {len(test)} test images of {data.torchvision}"
    )


def _load(data: Data, home: Path, part: dict):
    import torchvision.datasets  # here, so that other sources start without torch

    loader = getattr(torchvision.datasets, data.torchvision)
    try:
        if data.download:
            home.mkdir(parents=True, exist_ok=True)
        return loader(home, download=data.download, **part)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{home}: torchvision cannot load {data.torchvision} from there: {error}. Put its "
            f"files into {home}, as torchvision keeps them, or set data.download=true."
        ) from error


def _class_names(dataset) -> list[str] | None:
    """Names by label; None where torchvision knows none. A slash would make another folder."""
    names = getattr(dataset, "classes", None)
    return None if names is None else [str(name).replace("/", "-") for name in names]


def _write_images(dataset, directory: Path, names: list[str] | None) -> list[int]:
    """PNG files, in class folders for train (`names` or not) and flat for test; the labels."""
    flat, labels = directory.name == "test", []
    directory.mkdir()
    for row in each(range(len(dataset)), f"writing {directory.name}", "img"):
        image, label = dataset[row]
        labels.append(int(label))
        folder = f"{label}_{names[label]}" if names else str(label)
        target = directory if flat else directory / folder
        target.mkdir(exist_ok=True)
        image.save(target / f"{row:06d}.png")
    return labels
