"""What the networks looked at, for a sample of images: predict/evidence/.

Right, wrong and how sure is what the submission's logits say, `posthoc`, averaged over networks and
views where it is a test image. What was looked at is shown of one network and the evaluation view:
an out-of-fold image is seen by the network of the fold that held it out, a test image by the first
network. Its own prediction may be another one, and is kept beside. In float32, one process.
"""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from PIL import Image
from torch.nn import functional as F

from src import cli
from src.artifacts.dataset import ALWAYS_TRAIN, Dataset, finished_networks, fold_of, load_dataset
from src.artifacts.evidence import DIRECTORY, FILE, Looked
from src.artifacts.files import read_json
from src.artifacts.oof import check_held_out
from src.artifacts.predictions import load_predictions
from src.artifacts.work import MANIFEST, RUNS, Work, require
from src.config.schema import Config
from src.data.cache import read_image
from src.data.transforms import EvalTransform, Preprocessing
from src.errors import UserError, some
from src.inference.sample import CHOSEN, held_out_sample, unlabelled_sample
from src.networks.base import Network

BATCH = 16  # images; there are few, and some networks keep every block's tokens
PICTURE = 192  # pixels, height and width of the picture that is kept, at most
GRID = 32  # places in height and width of a map that is kept, at most
FULL = -1  # in place of a fold


def evidence(config: Config, experiment: str, overwrite: bool, folds: list[str] = ()) -> Path:
    """Write predict/evidence/evidence.npz (see src/artifacts/evidence.py); returns its path.

    Another `predict.evidence` than it was made with makes it anew. Images that cannot be read are
    left out, and named. Errors: UserError when 05 has not predicted, or the logits are of other
    folds.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    home = RUNS / config.dataset / experiment
    path = home / "predict" / DIRECTORY / FILE
    if state.is_main_process:
        data = load_dataset(config.dataset).choose(folds)
        _make(config, data, home, path, state.device, overwrite)
    state.wait_for_everyone()
    return path


def _make(
    config: Config, data: Dataset, home: Path, path: Path, device: torch.device, overwrite: bool
) -> None:
    networks = {_number(stage1): stage1 for stage1 in finished_networks(home, data)}
    logits = {"predict/posthoc.npz": require(home / "predict/posthoc.npz", "05_predict.py")}
    if (oof := home / "posthoc" / "oof.npz").is_file():
        logits["posthoc/oof.npz"] = oof
    inputs = {name: data.directory / name for name in ("folds.csv", "classes.csv", "test.csv")}
    inputs |= {f"{p.name}/weights": p / "weights.safetensors" for p in networks.values()}
    settings = {"evidence": config.predict.evidence}
    anew = overwrite or _asked_otherwise(path.parent, settings)
    work = Work(path.parent, settings, inputs | logits, overwrite=anew)
    if work.finished():
        return
    sample = _sample(logits, data, networks, config.predict.evidence)
    looked = look(sample, networks, data, device)
    looked.save(work.directory / FILE)
    work.finish([FILE], images=len(looked))


def _number(stage1: Path) -> int:
    fold = fold_of(stage1)
    return FULL if fold is None else fold


def _asked_otherwise(directory: Path, settings: dict) -> bool:
    path = directory / MANIFEST
    return path.is_file() and read_json(path, {"settings": dict})["settings"] != settings


def _sample(
    logits: dict[str, Path], data: Dataset, networks: dict[int, Path], count: int
) -> pd.DataFrame:
    """The images to show with the columns CHOSEN and their `path`; fold: of the network to show."""
    bins = data.classes["bin"].to_numpy()
    test = load_predictions(logits["predict/posthoc.npz"], data.num_classes)
    chosen = unlabelled_sample(test, bins, count).assign(fold=next(iter(networks)))
    chosen = chosen.merge(data.test[["image_id", "path"]], on="image_id", validate="m:1")
    if oof := logits.get("posthoc/oof.npz"):
        held_out = load_predictions(oof, data.num_classes)
        check_held_out(held_out, data, oof)
        found = held_out_sample(held_out, bins, count)
        found = found[found["fold"].isin(networks.keys() - {ALWAYS_TRAIN})]
        found = found.merge(data.images[["image_id", "path"]], on="image_id", validate="m:1")
        chosen = pd.concat([found, chosen])
    return chosen.reset_index(drop=True)


def look(
    sample: pd.DataFrame, networks: dict[int, Path], data: Dataset, device: torch.device
) -> Looked:
    """Each image of `sample` (columns CHOSEN and path) through the network of its fold."""
    from src.networks.weights import load_network  # slow to import

    seen: dict[int, dict] = {}  # by row
    lost: list[str] = []
    for fold, rows in sample.groupby("fold"):
        network, prep = load_network(networks[fold] / "weights.safetensors", data)
        network.to(device)
        transform, views = EvalTransform(prep), {}
        for row, path in rows["path"].items():
            try:
                views[row] = transform(read_image(path))
            except UserError:
                lost.append(path)
        for start in range(0, len(views), BATCH):
            part = list(views)[start : start + BATCH]
            images = np.stack([views[row] for row in part])
            seen |= zip(part, looked_at(network, prep, images, device), strict=True)
        size = prep.size
    if lost:
        cli.say(
            f"predict/evidence: {len(lost)} images cannot be read and are left out: {some(lost)}"
        )
    order = sorted(seen)
    columns = {name: sample.loc[order, name].to_numpy() for name in CHOSEN}
    columns |= {name: columns[name].astype(str) for name in ("image_id", "split", "kind")}
    return Looked(
        **columns,
        explained=np.array([seen[row]["explained"] for row in order], np.int64),
        jpeg=[seen[row]["jpeg"] for row in order],
        size=size,
        boxes=_stacked([seen[row]["boxes"] for row in order]),
        maps=_stacked([seen[row]["maps"] for row in order]),
    )


def looked_at(
    network: Network, prep: Preprocessing, images: np.ndarray, device: torch.device
) -> list[dict]:
    """Of each image [N, size, size, 3] uint8 what `Looked` holds: explained, jpeg, boxes, maps."""
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
    batch = prep.normalise(batch)
    with torch.no_grad():
        explained = network(batch).logits.argmax(1).tolist()
        found = network.evidence(batch)
    boxes = {name: b.float().cpu().numpy() for name, b in found.boxes.items()}
    maps = {name: _kept(m) for name, m in found.maps.items()}
    return [
        {
            "explained": label,
            "jpeg": _jpeg(image),
            "boxes": {name: b[i] for name, b in boxes.items()},
            "maps": {name: m[i] for name, m in maps.items()},
        }
        for i, (image, label) in enumerate(zip(images, explained, strict=True))
    ]


def _kept(maps: torch.Tensor) -> np.ndarray:
    """Maps [N, h, w] on a grid of at most GRID x GRID, the largest place of each 1."""
    maps = maps.float()
    size = tuple(min(side, GRID) for side in maps.shape[1:])
    maps = F.adaptive_avg_pool2d(maps[:, None], size)[:, 0]
    largest = maps.amax((1, 2), keepdim=True)
    return torch.where(largest > 0, maps / largest, 0).half().cpu().numpy()


def _jpeg(image: np.ndarray) -> bytes:
    picture, file = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((PICTURE, PICTURE), Image.Resampling.LANCZOS)
    picture.save(file, format="JPEG", quality=80, optimize=True)
    return file.getvalue()


def _stacked(found: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([part[name] for part in found]) for name in (found or [{}])[0]}
