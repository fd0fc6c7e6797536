"""What the judge of 04 lets pass where there is nothing to find.

    python benchmarks/noise.py

Two heads on features, all independent of the labels, which have a long tail: whatever a step gains
out of fold it gains by chance. Each step is tried alone on each draw, and kept at each number of
standard errors; the chain is what 04 tries by default, and keeps something if any of its steps is
kept. `judge.standard_errors` shall let so few pass that of 50 draws fewer than 5 keep something;
tests/test_noise.py has its draws from here.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/noise.py`

from benchmarks.results import RESULTS, markdown, provenance, write_section
from src.config.read import parse_config
from src.fusion import build_steps
from src.fusion.step import State
from src.posthoc.crossfit import no_steps, try_step
from src.posthoc.inputs import Start

FOLDS, DRAWS = 3, 50
BARS = (1.0, 1.64, 2.0, 2.25, 2.5)
CHAIN = ("tau_norm", "logit_adjustment", "ncm_fusion")
STEPS = (*CHAIN, "fusion", "llw", "class_scales", "max_norm")
SIZES = {  # classes, features, images of the most frequent class and of the rarest
    "8 classes of 150 … 8 images": (8, 12, 150, 8),
    "10 classes of 200 … 10 images": (10, 16, 200, 10),
}


def noise(seed: int, classes=8, width=12, most=150, least=8) -> Start:
    """A draw, whose labels no feature and no head knows anything of."""
    rng = np.random.default_rng(seed)
    shares = (least / most) ** (np.arange(classes) / (classes - 1))
    counts = np.round(most * shares).astype(int)
    labels = rng.permutation(np.repeat(np.arange(classes), counts))
    fold = np.arange(len(labels)) % FOLDS
    features = rng.normal(size=(len(labels), width)).astype(np.float32)
    weight, means = rng.normal(size=(2, classes, width)).astype(np.float32)
    bias = rng.normal(size=classes).astype(np.float32)
    heads = {
        "stage1": ("linear", {"weight": weight, "bias": bias}),
        "ncm": ("cosine", {"weight": means, "scale": np.float32(10)}),
    }
    logits = features @ weight.T + bias
    states = {
        k: State(logits[fold == k], features[fold == k], "stage1", heads, counts)
        for k in range(FOLDS)
    }
    return Start("stage1", states, {k: labels[fold == k] for k in range(FOLDS)})


def gains(starts: list[Start], names: tuple[str, ...]) -> np.ndarray:
    """[draws, steps] cross-fitted gains in standard errors; 0 where a step changes nothing."""
    found = np.zeros((len(starts), len(names)))
    for j, name in enumerate(names):
        keys = {"stage2": ["crt", "ncm"], "posthoc": {"steps": [name]}}
        config = parse_config(keys | {"metric": "balanced_accuracy"})
        for i, start in enumerate(starts):
            gain = try_step(build_steps(config)[0], start, no_steps(start), config).gain
            found[i, j] = gain.value / gain.noise if gain.noise > 0 else 0.0
    return found


def passed(found: np.ndarray) -> list[dict]:
    """A row per bar. found: of `gains` for STEPS"""
    rows = []
    for bar in BARS:
        kept = found > bar
        row = {"standard errors": f"{bar:g}", "the chain": int(kept[:, : len(CHAIN)].any(1).sum())}
        rows.append(row | {name: int(n) for name, n in zip(STEPS, kept.sum(0), strict=True)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=4 * DRAWS)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args()
    parts = [provenance(), f"Of {args.draws} draws, how many keep what was fitted to noise."]
    for title, sizes in SIZES.items():
        starts = [noise(seed, *sizes) for seed in range(args.draws)]
        parts += [f"**{title}**", markdown(passed(gains(starts, STEPS)))]
        print(parts[-1], flush=True)
    write_section("noise", "What noise passes", "\n\n".join(parts), args.out)


if __name__ == "__main__":
    main()
