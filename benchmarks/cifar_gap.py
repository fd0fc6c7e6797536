"""What keeps CIFAR-10-LT below the published figures, tested one at a time.

    python benchmarks/cifar_gap.py --jobs 2
    python benchmarks/cifar_gap.py --variants again --seeds 0    # some of it
    python benchmarks/cifar_gap.py --budget published --variants torch --seeds 0    # 200 epochs
    python benchmarks/cifar_gap.py --table                       # nothing is trained

  given   the row of benchmarks/cifar_lt.py: 02 as it is, in bf16
  fp32    the same in float32
  torch   the same images, network and schedule in a bare loop of torch and torchvision, in float32:
          its crops, its mirroring, its batches, its steps; nothing of 02
  again   every image, of training and test, compressed a second time, in bf16. The images of
          ../shared/data/cifar10.zip are JPEGs of quality 75 with half the colour resolution; the
          papers had lossless ones, which are not at hand. So the same loss is added once more, on
          blocks shifted by 5 pixels, and the result kept lossless: what that costs is what one such
          compression costs images that have less to lose than the lossless ones
Cross-entropy, 1:100, at a budget of benchmarks/cifar_lt.py, the same split in each. The test set is
scored and never used to choose anything; how far the best of many test epochs, as papers report
it, is above the last one is told by the bare loop, which scores itself every few epochs. Scores are
kept in scores/cifar_gap.csv; at `published`, `given` is what benchmarks/cifar_lt.py kept.
"""

import argparse
import io
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/cifar_gap.py`

from benchmarks.cifar_jobs import HELD_OUT, SCORES, Job, job_config, run_job, without_prior
from benchmarks.cifar_methods import BUDGETS
from benchmarks.cifar_table import Section
from benchmarks.pool import run_all
from benchmarks.results import RESULTS, Scores, distinct, machine, markdown, write_section
from src import cli
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, write_json
from src.artifacts.work import MANIFEST, RUNS, Work
from src.config.model import Model
from src.config.read import load_config
from src.config.schema import Config
from src.config.tree import dump_config
from src.errors import UserError
from src.networks.build import build_network
from src.prepare.prepare import prepare
from src.submission.solution import find_solution, score_solution

CONFIG = "configs/cifar10_lt.yaml"
SPLIT = "exp100"
SHIFT, QUALITY, HALF_COLOUR = 5, 75, 2  # pixels; Pillow's words for what the images have
VARIANTS = {
    "given": "02, bf16",
    "fp32": "02, float32",
    "torch": "a bare loop of torch, float32",
    "again": "02, bf16, images compressed once more",
}
ROWS = {"ce": "cross-entropy", "ce/prior": "… + logit adjustment"}
KEPT = Scores("cifar_gap", ("budget", "training", "seed", "row"), ("score", "best", "looks"))
LOOK_EVERY = 5  # epochs
METRIC = "balanced_accuracy"


@dataclass(frozen=True)
class Variant:
    """A training. name: in VARIANTS · root: of the images as given · budget: in BUDGETS"""

    name: str
    seed: int
    root: Path
    budget: str = "cpu"

    @property
    def job(self) -> Job:
        own = {
            "again": (f"data.root={self.root.with_name(self.root.name + '_again')}",),
            "fp32": ("train.precision=fp32",),
        }
        images = self.name if self.name in own else "given"  # experiments have one name
        named = f"data.name={self.root.name}_{images}_{SPLIT}"
        overrides = ("stage2=[]", named, *own.get(self.name, ()))
        return Job(CONFIG, self.budget, "ce", SPLIT, self.seed, overrides)

    @property
    def scores(self) -> Path:
        bare = f"{self.budget}-torch-s{self.seed}"
        experiment = bare if self.name == "torch" else self.job.experiment
        return RUNS / job_config(self.job).dataset / experiment / "score"


def main(argv: list[str] | None = None) -> None:
    """Errors: UserError when a job failed; the others are finished first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--budget", choices=["cpu", "published"], default="cpu")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time")
    parser.add_argument("--table", action="store_true", help="write the table from what is there")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args(argv)
    root = Path(load_config(CONFIG).data.root)
    failed = []
    if not args.table:
        if "again" in args.variants:
            compress_again(root, root.with_name(f"{root.name}_again"))
        wanted = [Variant(v, seed, root, args.budget) for seed in args.seeds for v in args.variants]
        for config in {v.name: job_config(v.job) for v in wanted}.values():
            prepare(config)
        for variant, problem in run_all(train, wanted, args.jobs):
            print(f"{variant.name}, seed {variant.seed}: {problem or 'done'}", flush=True)
            failed += [f"{variant.name}, seed {variant.seed}: {problem}"] if problem else []
    print(write_table(args.out, root, args.budget, args.seeds))
    if failed:
        raise UserError("; ".join(failed))


def train(variant: Variant) -> dict[str, str]:
    return bare(variant) if variant.name == "torch" else run_job(variant.job)


def bare(variant: Variant) -> dict[str, str]:
    """`torch`: train and score, or skip what is there."""
    config = job_config(variant.job)
    data = load_dataset(config.dataset)
    solution = find_solution(data, None)
    step = Work(variant.scores, {"train": dump_config(config.train)}, {"solution": solution})
    if step.finished():
        return {}
    held_out = BUDGETS[variant.budget].held_out
    images = data.training(int(HELD_OUT)) if held_out else data.images
    network, _ = build_network(config.model, data.classes_of(images))
    test = Files(data.test["path"], [0] * len(data.test), whole(config.model))
    ids = data.test["image_id"].to_numpy(str)

    def look() -> dict[str, dict]:
        logits = predicted(network, test)
        rows = {"ce": logits, "ce/prior": without_prior(logits, data)}
        return {row: score_solution(z, ids, data, solution)[0] for row, z in rows.items()}

    looks = []
    for epoch in trained(network, images, config, variant.seed):
        if epoch % LOOK_EVERY == 0 or epoch == config.train.epochs:
            looks.append(look())
            print(f"epoch {epoch}: {looks[-1]['ce']['balanced_accuracy']:.4f}", flush=True)
    scores = looks[-1]
    write_json(step.directory / SCORES, {"rows": scores, "looks": looks})
    step.finish([SCORES], scores)
    return {}


class Files(torch.utils.data.Dataset):
    def __init__(self, paths, labels, transform):
        self.images = [Image.open(path).convert("RGB") for path in paths]
        self.labels, self.transform = list(labels), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.transform(self.images[index]), self.labels[index]


def whole(model: Model) -> transforms.Compose:
    """Image → [3, H, W], nothing cropped."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(model.mean, model.std)])


def trained(network: nn.Module, images: pd.DataFrame, config: Config, seed: int) -> Iterator[int]:
    """SGD on every image in every epoch by the schedule of the config, as a first script has it.
    Yields the number of epochs that are done."""
    torch.manual_seed(seed)
    train, size = config.train, config.model.image_size
    transform = transforms.Compose(
        [
            transforms.RandomCrop(size, padding=size // 8),
            transforms.RandomHorizontalFlip(),
            whole(config.model),
        ]
    )
    files = Files(images["path"], images["label"], transform)
    loader = torch.utils.data.DataLoader(files, train.batch_size, shuffle=True, drop_last=True)
    decays = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [
            {"params": decays, "weight_decay": train.weight_decay},
            {"params": others, "weight_decay": train.weight_decay * train.decay_all},
        ],
        train.lr,
        momentum=train.momentum,
        nesterov=train.nesterov,
    )
    warmup = round(train.warmup_epochs * len(loader))
    drops = [round(m * train.epochs) for m in train.milestones]
    for epoch in range(train.epochs):
        network.train()
        for step, (batch, labels) in enumerate(loader, epoch * len(loader)):
            rate = train.lr * train.gamma ** sum(epoch >= drop for drop in drops)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / max(warmup, 1))
            loss = nn.functional.cross_entropy(network(batch).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"torch, seed {seed}, epoch {epoch + 1}: {loss.item():.3f}", flush=True)
        yield epoch + 1


@torch.inference_mode()
def predicted(network: nn.Module, files: Files) -> np.ndarray:
    """Logits [M, K] of whole images."""
    network.eval()
    loader = torch.utils.data.DataLoader(files, 500)
    return torch.cat([network(batch).logits for batch, _ in loader]).numpy()


def compress_again(source: Path, target: Path) -> None:
    """Every JPEG below `source` once more, as PNG below `target`; what is there stays."""
    for path in sorted(source.rglob("*.jp*g")):
        copy = target / path.relative_to(source).with_suffix(".png")
        if not copy.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(compressed(np.asarray(Image.open(path).convert("RGB")))).save(copy)


def compressed(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 → the same shape, after a JPEG whose blocks begin SHIFT pixels earlier."""
    height, width, _ = image.shape
    around = np.pad(image, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    file = io.BytesIO()
    Image.fromarray(around).save(file, "JPEG", quality=QUALITY, subsampling=HALF_COLOUR)
    found = np.asarray(Image.open(file).convert("RGB"))
    return found[SHIFT : SHIFT + height, SHIFT : SHIFT + width]


def measured(root: Path, budget: str, seeds: list[int], path: Path) -> list[dict]:
    """Lines of KEPT, of what is under runs/ and of what benchmarks/cifar_lt.py kept."""
    lines = []
    for variant in (Variant(name, seed, root, budget) for seed in seeds for name in VARIANTS):
        key = {"budget": budget, "training": variant.name, "seed": str(variant.seed)}
        if variant.scores.joinpath(MANIFEST).is_file():
            tree = read_json(variant.scores / SCORES)
            facts = {"device": machine(), "git": read_json(variant.scores / MANIFEST)["git"]}
            for row in ROWS:
                looks = [look[row][METRIC] for look in tree.get("looks", [])]
                best = {"best": max(looks), "looks": len(looks)} if looks else {}
                lines.append(key | facts | best | {"row": row, "score": tree["rows"][row][METRIC]})
    if budget == "published":  # of all images, as there; its test set has as many of each class
        table = Section(CONFIG, budget).scores.read(path)
        own = table[(table["split"] == SPLIT) & (table["epoch"] == "last")]
        own = own[own["row"].isin(ROWS) & own["seed"].isin([str(seed) for seed in seeds])]
        for line in own.to_dict("records"):
            key = {"budget": budget, "training": "given", "score": line["accuracy"]}
            lines.append(key | {name: line[name] for name in ("row", "seed", "device", "git")})
    return lines


def write_table(path: Path, root: Path, budget: str, seeds: list[int]) -> str:
    """The section of RESULTS.md, of all that is under runs/ or was kept before."""
    kept = KEPT.keep(measured(root, budget, seeds, path), path)
    kept = kept[kept["budget"] == budget]
    if not len(kept):
        return "Nothing is trained."
    rows = []
    for name in (name for name in VARIANTS if name in set(kept["training"])):
        mine = kept[kept["training"] == name]
        line = {"training": VARIANTS[name], "seeds": " ".join(dict.fromkeys(mine["seed"]))}
        for row, title in ROWS.items():
            scores = kept[kept["row"] == row].set_index("seed")
            own, given = (scores.loc[scores["training"] == n, "score"] for n in (name, "given"))
            less = (own - given).dropna()
            line[title] = spread(100 * own)
            line[f"{title}, against given"] = "" if name == "given" else spread(100 * less, "+")
        looks = mine[mine["row"] == "ce"].dropna(subset="best")
        if kept["best"].notna().any():
            count = "" if looks.empty else f" (of {looks['looks'].max():.0f})"
            line["best test epoch"] = spread(100 * looks["best"]) + count
        rows.append(line)
    seeds = sorted(set(kept["seed"]), key=int)
    option = "" if budget == "cpu" else f" --budget {budget}"
    schedule = BUDGETS[budget].schedule.split(";")[0]
    body = "\n\n".join(
        [
            f"`python benchmarks/cifar_gap.py{option} --seeds {' '.join(seeds)}` · trained at "
            f"commit {distinct(kept['git'])} · {' / '.join(sorted(set(kept['device'])))}",
            f"{schedule}. Balanced accuracy on the test set, %, mean ± standard deviation over "
            "seeds; differences are between trainings of one seed on the same images. "
            f"{pixels(root)}",
            markdown(rows),
        ]
    )
    name, title = "cifar gap", "CIFAR-10-LT: below the published figures"
    if budget != "cpu":
        name, title = f"{name} {budget}", f"{title}, budget {budget}"
    return write_section(name, title, body, path)


def spread(values: pd.Series, sign: str = "") -> str:
    if not len(values):
        return ""
    mean = f"{statistics.mean(values):{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def pixels(root: Path) -> str:
    """How far the second compression moves a pixel, on the test images."""
    moved = []
    for path in load_dataset(job_config(Variant("given", 0, root).job).dataset).test["path"][::10]:
        image = np.asarray(Image.open(path).convert("RGB"))
        moved.append(np.abs(compressed(image).astype(int) - image).mean())
    return f"The second compression moves a channel by {np.mean(moved):.1f} of 255 on average."


if __name__ == "__main__":
    cli.run(main)
