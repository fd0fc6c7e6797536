"""Stage 2: cRT on cached features against the same head with the frozen backbone run every epoch.

    python benchmarks/stage2.py --config configs/birds_lt_plain.yaml

Both arms train the same head, with the same sampler, order and schedule, on fold 0, on the plain
view; one reads features from memory, the other decodes the images and runs the backbone for each
batch. The time of the cached arm includes computing the cache. Accuracy is on the held-out fold,
over `--seeds`. Needs 02's fold 0.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/stage2.py`

from benchmarks.results import markdown, provenance, write_section
from src.artifacts.dataset import load_dataset
from src.artifacts.predictions import load_predictions
from src.artifacts.work import RUNS
from src.config.heads import CRT, PASSES
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
from src.runtime import start


def cached(spec: CRT, config, data, stage1: Path, seeds: int, accelerator):
    """Seconds for the cache plus one head, and every seed's head."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        features = feature_set(config, data, stage1, Path(directory), 0, accelerator)
    heads = [fit_crt(spec, features, 0, accelerator.device)]
    seconds = time.perf_counter() - began
    heads += [fit_crt(spec, features, seed, accelerator.device) for seed in range(1, seeds)]
    return seconds, heads


def uncached(spec: CRT, config, data, stage1: Path, seed: int, accelerator):
    """The same training with the backbone in the loop."""
    began = time.perf_counter()
    network, prep = load_network(stage1 / "weights.safetensors", data)
    network.to(accelerator.device)
    images = data.training(0)
    labels = images["label"].to_numpy()
    epochs = Epochs(
        lambda epoch: epoch_order(spec.sampler, labels, data.num_classes, seed, epoch),
        spec.batch_size,
    )
    loader = train_loader(images, EvalTransform(prep), epochs, config.data.workers, False)
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
    return time.perf_counter() - began, (head.kind, arrays)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/birds_lt_plain.yaml")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=5, help="of the cached arm")
    args = parser.parse_args()
    config = load_config(args.config, args.set)
    data = load_dataset(config.dataset)
    stage1 = RUNS / config.dataset / Path(args.config).stem / "stage1" / "fold0"
    accelerator = start(config.train.precision)
    spec = next(spec for spec in config.stage2 if spec.head == "crt")
    spec = spec.model_copy(update={"epochs": spec.epochs or PASSES})  # as few for both arms
    oof = load_predictions(stage1 / "oof.npz", data.num_classes)

    def score(head) -> float:
        return balanced_accuracy(head_logits(oof.features, head[1], head[0]), oof.label)

    fast, heads = cached(spec, config, data, stage1, args.seeds, accelerator)
    slow, head = uncached(spec, config, data, stage1, 0, accelerator)
    scores = [score(h) for h in heads]
    spread = f"{np.mean(scores):.3f} ± {np.std(scores):.3f} over {args.seeds} seeds"
    rows = [
        {"arm": "cached features", "seconds": fast, "balanced accuracy, fold 0": spread},
        {"arm": "backbone every epoch", "seconds": slow, "balanced accuracy, fold 0": score(head)},
    ]
    body = f"{provenance()}\n\n{markdown(rows)}\n\n{spec.epochs} epochs of "
    body += f"{len(data.training(0))} images: {slow / fast:.1f} times faster with the cache "
    body += f"(seed 0 of the cached arm: {scores[0]:.3f})."
    print(write_section("stage2", "Stage 2: cached features", body))


if __name__ == "__main__":
    main()
