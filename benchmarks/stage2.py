"""Stage 2: cRT on cached features against the same head with the frozen backbone run every pass.

    python benchmarks/stage2.py --config configs/birds_lt_plain.yaml

Both arms train the same head, with the same sampler, order and schedule, on fold 0, on the plain
view; one reads features from memory, the other decodes the images and runs the backbone for each
batch, `--passes` times over the images. 03 itself makes as many passes as give 500 steps: this the
cached arm does, too, and for the other one it is that many times the seconds of its passes. Seconds
are those that one core was busy, with one thread: other work on the machine does not count.
Accuracy is on the held-out fold, over `--seeds`. Needs 02's fold 0.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: idle threads that wait would count as busy

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/stage2.py`

from benchmarks.results import markdown, provenance, write_section
from src import cli
from src.artifacts.dataset import load_dataset
from src.artifacts.predictions import load_predictions
from src.artifacts.work import RUNS
from src.config.heads import CRT
from src.config.read import load_config
from src.data.dataset import Epochs, train_loader
from src.data.samplers import epoch_order
from src.data.transforms import EvalTransform
from src.logits import head_logits
from src.metrics import balanced_accuracy
from src.networks.heads import build_head
from src.networks.weights import load_network
from src.rebalance.crt import fit_crt
from src.rebalance.features import feature_set
from src.rebalance.sgd import plan
from src.runtime import start


def uncached(spec: CRT, config, data, stage1: Path, seed: int, accelerator):
    """The same training with the backbone in the loop; the head."""
    network, prep = load_network(stage1 / "weights.safetensors", data)
    network.to(accelerator.device)
    images = data.training(0)
    labels = images["label"].to_numpy()
    epochs = Epochs(
        lambda epoch: epoch_order(spec.sampler, labels, data.num_classes, seed, epoch),
        spec.batch_size,
    )
    loader = train_loader(images, EvalTransform(prep), epochs, 0, False)
    torch.manual_seed(seed)
    width = network.classifier.weight.shape[1]
    head = build_head("linear", width, data.num_classes, 1.0).to(accelerator.device)
    optimizer = torch.optim.SGD(
        head.parameters(), lr=spec.lr, momentum=0.9, weight_decay=spec.weight_decay
    )
    steps = spec.epochs * len(epochs)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(spec.epochs):
        epochs.epoch = epoch
        for batch in loader:
            with torch.no_grad(), accelerator.autocast():
                x = prep.normalise(batch.images.to(accelerator.device))
                f = network(x.contiguous(memory_format=torch.channels_last)).features.float()
            loss = F.cross_entropy(head(f), batch.labels.to(accelerator.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    arrays = {name: tensor.cpu().numpy() for name, tensor in head.arrays().items()}
    return head.kind, arrays


def timed(work):
    """Seconds that this process was busy, and what `work` returns."""
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/birds_lt_plain.yaml")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=5, help="of the cached arm")
    parser.add_argument("--passes", type=int, default=5, help="over the images, of both arms")
    args = parser.parse_args()
    config = load_config(args.config, [*args.set, "data.workers=0"])
    data = load_dataset(config.dataset)
    stage1 = RUNS / config.dataset / Path(args.config).stem / "stage1" / "fold0"
    accelerator = start(config.train.precision)
    shipped = CRT(head="crt")
    spec = shipped.model_copy(update={"epochs": args.passes})
    oof = load_predictions(stage1 / "oof.npz", data.num_classes)
    images = len(data.training(0))
    whole = plan(shipped, images).epochs

    def fit(spec: CRT, seed: int):
        return fit_crt(spec, features, seed, accelerator.device)

    def score(head) -> float:
        return balanced_accuracy(head_logits(oof.features, head[1], head[0]), oof.label)

    with tempfile.TemporaryDirectory() as home:
        once, features = timed(
            lambda: feature_set(config, data, stage1, Path(home), 0, accelerator)
        )
    short, first = timed(lambda: fit(spec, 0))
    full, _ = timed(lambda: fit(shipped, 0))
    slow, head = timed(lambda: uncached(spec, config, data, stage1, 0, accelerator))
    scores = [score(first), *(score(fit(spec, seed)) for seed in range(1, args.seeds))]
    each = slow / args.passes
    rows = [
        {"core seconds": "one pass for the features", "cached": once, "backbone in every pass": ""},
        {"core seconds": f"cRT, {args.passes} passes", "cached": short,
         "backbone in every pass": slow},
        {"core seconds": f"cRT, {whole} passes, as in 03", "cached": full,
         "backbone in every pass": each * whole},
    ]  # fmt: skip
    body = f"""{provenance()}

{markdown(rows, 2)}

{images} images; the last figure on the right is {whole} times that of one pass. Stage 2 with one
head is {each * whole / (once + full):.0f} times faster, each further head on the same features
{each * whole / full:.0f} times; in {args.passes} passes, of which the features take one,
{slow / (once + short):.1f} times. Balanced accuracy on fold 0 after {args.passes} passes:
{np.mean(scores):.3f} ± {np.std(scores):.3f} over {args.seeds} seeds with the cache (seed 0:
{scores[0]:.3f}), {score(head):.3f} without."""
    print(write_section("stage2", "Stage 2: cached features", body))


if __name__ == "__main__":
    cli.run(main)
