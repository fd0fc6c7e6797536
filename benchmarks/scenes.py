"""Are planted bursts found, and what did they do to out-of-fold scores?

    python benchmarks/scenes.py
    python benchmarks/scenes.py --features network --config configs/birds_lt.yaml

Copies some images of a folder of classes; of every second one it makes three frames: shifted and
cropped by up to `move`, brightness within `move`. Then 01 looks for scenes. The table has the share
of the pairs of frames of one burst that is in one group, how many other pairs are, and the accuracy
of the nearest neighbour by the pixels of 16 × 16 thumbnails, out of fold, with folds that split
bursts and that do not: what differs is the leak.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/scenes.py`

from benchmarks.results import RESULTS, markdown, provenance, write_section
from src.artifacts.files import read_json, read_table
from src.config.read import load_config, parse_config
from src.prepare.prepare import prepare

FRAMES = 3


def plant(images: Path, root: Path, move: float, most: int, seed: int = 0) -> dict[str, str]:
    """Frames in root/train; the scene of each image_id."""
    rng, scene = np.random.default_rng(seed), {}
    for folder in sorted(path for path in images.iterdir() if path.is_dir()):
        target = root / "train" / folder.name
        target.mkdir(parents=True)
        for number, path in enumerate(sorted(folder.iterdir())[:most]):
            with Image.open(path) as file:
                image = file.convert("RGB")
            frames = [frame(image, move, rng) for _ in range(FRAMES)] if number % 2 else [image]
            for i, one in enumerate(frames):
                name = f"{rng.integers(16**8):08x}{'abc'[i]}"
                one.save(target / f"{name}.jpg", quality=90)
                scene[f"{folder.name}/{name}"] = path.as_posix()
    return scene


def frame(image: Image.Image, move: float, rng: np.random.Generator) -> Image.Image:
    share = rng.uniform(1 - move, 1)
    w, h = (round(share * side) for side in image.size)
    x, y = rng.integers(0, image.width - w + 1), rng.integers(0, image.height - h + 1)
    shade = rng.uniform(1 - move, 1 + move)
    return ImageEnhance.Brightness(image.crop((x, y, x + w, y + h))).enhance(shade)


def pairs(groups: pd.Series) -> int:
    size = groups.value_counts()
    return int((size * (size - 1) // 2).sum())


def neighbour_accuracy(images: pd.DataFrame) -> float:
    """Of the nearest image of other folds, by 16 × 16 thumbnails."""
    f = np.stack([
        np.asarray(Image.open(p).convert("RGB").resize((16, 16), Image.Resampling.BOX), np.float32)
        for p in images["path"]
    ]).reshape(len(images), -1)  # fmt: skip
    f -= f.mean(1, keepdims=True)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    fold, label = images["fold"].to_numpy(), images["label"].to_numpy()
    s = np.where(fold[:, None] == fold, -2, f @ f.T)
    held_out = fold >= 0
    return float((label[s.argmax(1)] == label)[held_out].mean())


def measured(images: Path, work: Path, move: float, most: int, keys: dict, model: dict) -> dict:
    root = work / f"moved_{move:g}_{keys['features']}"
    scene = plant(images, root, move, most)
    row = {"move": move}
    for mode in ("never", "auto"):
        data = {"root": str(root), "name": f"{root.name}_{mode}", "test": None}
        data |= {"scenes": keys | {"mode": mode}}
        directory = prepare(parse_config({"data": data, **model}))
        table = read_table(directory / "folds.csv", ("fold", "label"))
        row[f"nearest neighbour, {mode}"] = neighbour_accuracy(table)
    true, found = table["image_id"].map(scene), table["group_id"]
    both = pairs(true.str.cat(found, sep="|"))
    facts = read_json(directory / "manifest.json")["scenes"]
    row |= {"strong": facts["strong"], "mates": facts["mates"], "apart": facts["apart"]}
    row |= {"found of pairs": both / pairs(true), "wrong pairs": pairs(found) - both}
    return row | {"images": len(table), "split without": facts.get("split_without", 0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=Path, default=Path("data/raw/birds_lt/train"), help="a folder per class"
    )
    parser.add_argument("--moves", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2])
    parser.add_argument("--most", type=int, default=6, help="images of a class")
    parser.add_argument("--features", default="pixels")
    parser.add_argument("--config", help="of whose section model the network's weights are")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args()
    model, out = {}, args.out.resolve()
    if args.config:
        told = load_config(args.config, []).model
        keep = ("backbone", "kwargs", "mean", "std", "image_size")
        model = {name: getattr(told, name) for name in keep}
        model = {"model": model | {"pretrained": str(Path(told.pretrained).resolve())}}
    images, about = args.images.resolve(), provenance()
    keys, home = {"features": args.features}, Path.cwd()
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        rows = [measured(images, Path("raw"), m, args.most, keys, model) for m in args.moves]
        os.chdir(home)
    body = f"{about}\n\nFound by {args.features}. `nearest neighbour` is its accuracy out of fold "
    body += "with folds that know of no scenes, and with those of `mode: auto`; what it loses was "
    body += f"the leak.\n\n{markdown(rows)}"
    title = f"Planted bursts, by {args.features}"
    print(write_section(f"scenes {args.features}", title, body, out))


if __name__ == "__main__":
    main()
