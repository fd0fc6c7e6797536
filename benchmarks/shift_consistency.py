"""How often does a network change its mind when the image moves, with and without blur?

    python benchmarks/shift_consistency.py --config configs/birds_lt_plain.yaml
    python benchmarks/shift_consistency.py --config configs/cifar10_lt.yaml --set train.epochs=30
    python benchmarks/shift_consistency.py --config configs/digits.yaml --quick    # under a minute
    python benchmarks/shift_consistency.py --config configs/cifar10_lt.yaml \
        --set data.name=cifar10_lt_exp100 --experiments cpu-ce-s0 cpu-anti_alias-s0

Trains the config twice on one fold, with model.anti_alias false and true (experiments
<config>-shift-plain and <config>-shift-blur; finished work is skipped and a stopped run continues),
or takes two experiments that are there (of benchmarks/cifar_lt.py), and measures on the held-out
images. A third row has the blur put into the plain weights without training. Needs 01 to have run.
Writes its section of benchmarks/RESULTS.md, unless --quick.

Consistency (Zhang, ICML 2019, section 4): the share of pairs of randomly placed crops of an image
that get the same class. The image is resized as in evaluation; where a crop reaches beyond it, its
border is reflected.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/shift_consistency.py`

from benchmarks.results import RESULTS, markdown, provenance, write_section
from src import cli
from src.artifacts.dataset import Dataset, fold_name, load_dataset
from src.artifacts.work import RUNS
from src.config.read import load_config
from src.config.schema import Config
from src.data.images import load_image
from src.data.transforms import EvalTransform, Preprocessing
from src.networks.base import Network
from src.networks.build import build_network
from src.networks.weights import load_network
from src.training.stage1 import stage1

QUICK = ["train.epochs=2", "train.warmup_epochs=0", "train.eval_every=100"]
QUICK_IMAGES = 100
CHUNK = 64  # images at once


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    overrides = [*(QUICK if args.quick else []), *args.set]
    stem = f"{Path(args.config).stem}-shift" + ("-quick" if args.quick else "")
    rows, networks = [], {}
    experiments = args.experiments or [f"{stem}-plain", f"{stem}-blur"]
    for name, experiment, blurred in zip(
        ("plain", "blur"), experiments, (False, True), strict=True
    ):
        config = load_config(args.config, [*overrides, f"model.anti_alias={blurred}"])
        if args.experiments:
            config = load_config(RUNS / config.dataset / experiment / "config.yaml")
        else:
            stage1(config, experiment, [str(args.fold)], args.overwrite)
        networks[name] = trained(config, experiment, args.fold)
    data = load_dataset(config.dataset)
    networks["blur, not trained"] = with_blur(networks["plain"], config, data)
    table = data.held_out(args.fold)
    if args.quick:
        table = table.sample(min(QUICK_IMAGES, len(table)), random_state=0)
    for name in ("plain", "blur, not trained", "blur"):
        network, prep = networks[name]
        shift = args.shift or max(1, round(prep.size / 14))
        same, right = consistency(network, prep, table, shift, args.pairs)
        rows.append({"network": name, "consistency": same, "accuracy": right})
    title = (
        f"{config.model.backbone}, {prep.size} px, {len(table)} held-out images of fold "
        f"{args.fold}, {args.pairs} pairs each, shifts of up to {2 * shift} px"
    )
    cli.print_table(pd.DataFrame(rows), title)
    if not args.quick:
        body = f"{provenance()}\n\n{title}.\n\n{markdown(rows)}"
        name = f"shift {config.dataset}"
        write_section(name, f"Shift consistency, {config.dataset}", body, args.out)


def trained(config: Config, experiment: str, fold: int) -> tuple[Network, Preprocessing]:
    path = RUNS / config.dataset / experiment / "stage1" / fold_name(fold) / "weights.safetensors"
    return load_network(path, load_dataset(config.dataset))


def with_blur(
    plain: tuple[Network, Preprocessing], config: Config, data: Dataset
) -> tuple[Network, Preprocessing]:
    """The plain weights in the network of a config with blur: the keys are the same."""
    network, _ = build_network(config.model, data.classes_of(data.images))
    network.load_state_dict(plain[0].state_dict())
    return network.eval(), plain[1]


@torch.inference_mode()
def consistency(
    network: Network, prep: Preprocessing, table: pd.DataFrame, shift: int, pairs: int
) -> tuple[float, float]:
    """Share of the pairs that agree, and of single crops that are right.

    table: path, label · shift: pixels, each way from the centre · pairs: per image
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    offsets = np.random.default_rng(0).integers(0, 2 * shift + 1, (len(table), pairs, 2, 2))
    agree, right = [], []
    for start in range(0, len(table), CHUNK):
        part = table.iloc[start : start + CHUNK]
        wide = [widened(load_image(path), prep, shift) for path in part["path"]]
        for pair in range(pairs):
            found = []
            for which in range(2):
                places = offsets[start : start + CHUNK, pair, which]
                crops = [
                    image[y : y + prep.size, x : x + prep.size]
                    for image, (y, x) in zip(wide, places, strict=True)
                ]
                batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(device)
                found.append(network(prep.normalise(batch)).logits.argmax(1).cpu().numpy())
            agree.append(found[0] == found[1])
            right += [classes == part["label"].to_numpy() for classes in found]
    return float(np.concatenate(agree).mean()), float(np.concatenate(right).mean())


def widened(image: np.ndarray, prep: Preprocessing, shift: int) -> np.ndarray:
    """[H, W, 3] → a square of size + 2 · shift pixels, as much of it real as evaluation's resize
    leaves, the rest a reflection."""
    short = max(prep.size, round(prep.size / prep.crop_pct))
    real = min(prep.size + 2 * shift, short)
    view = EvalTransform(replace(prep, size=real, crop_pct=real / short))(image)
    missing = prep.size + 2 * shift - real
    pad = (missing // 2, missing - missing // 2)
    return np.pad(view, (pad, pad, (0, 0)), mode="reflect")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--fold", type=int, default=0, help="fold held out (default 0)")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of crops per image (default 5)")
    parser.add_argument(
        "--shift", type=int, help="pixels each way (default: 1/14 of the size, 16 of 224)"
    )
    parser.add_argument(
        "--experiments", nargs=2, metavar=("PLAIN", "BLUR"), help="trained already; train nothing"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="MD", help="default: RESULTS.md"
    )
    parser.add_argument(
        "--quick", action="store_true", help="two epochs and 100 images: does it run?"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main)
